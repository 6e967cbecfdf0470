"""What tests share: fakes, models, makers of images, and the programs to compare with."""
