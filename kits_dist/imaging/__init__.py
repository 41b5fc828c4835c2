"""Read medical images: NIfTI, DICOM, data sets of cases, label maps of annotators and other systems."""
