#ifndef SLUICE_RUNTIME_KERNELS_CONVERT_CONVERT_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_CONVERT_CONVERT_REFERENCE_H_
// The specification: plain loops in double precision.
// api/dtype.h holds the scalar conversions; they are the reference.
#include "sluice/api/dtype.h"
#endif  // SLUICE_RUNTIME_KERNELS_CONVERT_CONVERT_REFERENCE_H_
