"""The generator, the critics and the one training loop; all of it post-processing of noised releases."""
