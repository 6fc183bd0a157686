"""Networks: backbone, pyramid, head, and the detector made of them."""
