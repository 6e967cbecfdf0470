"""The programs: aioblock-img, aioblock-io, aioblock-nbd."""
