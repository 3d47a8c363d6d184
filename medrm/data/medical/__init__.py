"""Medical images, DICOM and NIfTI, as pictures: by conversions that have names."""
