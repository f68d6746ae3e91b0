#ifndef SLUICE_RUNTIME_KERNELS_FOR_EACH_TARGET_H_
#define SLUICE_RUNTIME_KERNELS_FOR_EACH_TARGET_H_
// Runs a test body once for every instruction set that was compiled and that this CPU has.
#include "hwy/targets.h"

namespace sluice::kernels {
template <class Body>
void ForEachTarget(Body&& body) {
  hwy::SetSupportedTargetsForTest(0);
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_FOR_EACH_TARGET_H_
