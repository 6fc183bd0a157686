"""The ATSS paper (Zhang et al., CVPR 2020): 8 tables, 47 rows, 19 claims."""
