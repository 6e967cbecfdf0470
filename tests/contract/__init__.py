"""What every driver must do: one suite, run over each of the subjects in `subjects.py`."""
