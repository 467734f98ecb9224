"""`python -m binarize_onnx` is the command `binarize-onnx`."""

from binarize_onnx.cli import main

if __name__ == "__main__":
    main(prog_name="binarize-onnx")
