"""Pure tensor mathematics: no state, no devices, no files."""
