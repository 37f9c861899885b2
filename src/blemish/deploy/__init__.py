"""One file that runs anywhere: a model as an ONNX graph, from pixels to a decision, checked against torch."""
