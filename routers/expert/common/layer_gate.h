#ifndef SLUICE_ROUTERS_EXPERT_COMMON_LAYER_GATE_H_
#define SLUICE_ROUTERS_EXPERT_COMMON_LAYER_GATE_H_
// The linear gate of one layer, as routers read it that score tokens themselves.
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/api/router.h"
#include "sluice/api/weight_source.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Keys of the sizes of a file: how many layers, how wide the states are, how many experts.
struct GateKeys {
  std::string layers, dim, experts;
};

// The tensor [dim, experts] of a layer that the file has, within what sizes may be.
inline absl::StatusOr<Linear> ReadLayerGate(const WeightSource& w, const GateKeys& keys,
                                            int64_t layer, const std::string& tensor) {
  SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int(keys.layers));
  SLUICE_ASSIGN_OR_RETURN(const int64_t dim, w.Int(keys.dim));
  SLUICE_ASSIGN_OR_RETURN(const int64_t experts, w.Int(keys.experts));
  constexpr int64_t kMost = 1 << 16;
  if (layer >= layers)
    return absl::OutOfRangeError(
        absl::StrCat("layer=", layer, ", but the weights have ", layers, " layers"));
  if (dim <= 0 || dim > kMost || experts <= 0 || experts > kMost)
    return absl::InvalidArgumentError(absl::StrCat(keys.dim, " ", dim, ", ",
                                                   keys.experts.substr(keys.experts.rfind('.') + 1),
                                                   " ", experts, "; allowed 1 to ", kMost));
  return Linear::ReadMatrix(w, tensor, dim, experts);
}

// Whether the host's states and experts are those of the gate.
inline absl::Status CheckGateShape(const Linear& gate, const RouteShape& s) {
  if ((s.units == 0 || s.units == gate.out) && s.hidden == gate.in) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("shape: ", s.units, " units, hidden ", s.hidden,
                                                 "; wanted ", gate.out, " units (or 0) and hidden ",
                                                 gate.in));
}
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_COMMON_LAYER_GATE_H_
