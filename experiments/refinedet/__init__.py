"""Zhang et al., Single-Shot Refinement Neural Network for Object Detection (RefineDet), CVPR 2018."""
