"""One file that runs anywhere: a model as an ONNX graph, from an image's pixels to a decision, checked against torch."""
