"""Data sets as other tools export them, read into COCO's dictionaries: one reader a format.

`convert.convert` is what the rest of the project calls. It recognises the layout (`layouts`), reads it with
the reader of its format, puts names, numbers and ids in order (`normalise`, `boxes`), splits it where it has
no split (`splitting`) and writes the result once, as COCO JSON. The data set itself is never written to.
"""
