#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_DIMS_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_DIMS_H_
// What trained weights hold: the sizes that they say of themselves, one integer a member of a
// method's Dims, under "sluice.METHOD.NAME"; and the tensors of a layer, one a member of its Layer.
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/api/config.h"
#include "sluice/api/weight_source.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
template <class Dims>
using DimName = std::pair<const char*, int64_t Dims::*>;

template <class Dims, size_t N>
void DeclareDims(absl::string_view method, const DimName<Dims> (&names)[N], const Dims& dims,
                 WeightKeys& keys) {
  for (const auto& [name, member] : names)
    keys.ints.push_back({absl::StrCat("sluice.", method, ".", name), dims.*member});
}
// Fails where one is missing, negative or beyond what a model has.
template <class Dims, size_t N>
absl::Status ReadDims(const WeightSource& w, absl::string_view method,
                      const DimName<Dims> (&names)[N], Dims& dims) {
  constexpr int64_t kMost = 1 << 20;
  for (const auto& [name, member] : names) {
    const std::string key = absl::StrCat("sluice.", method, ".", name);
    SLUICE_ASSIGN_OR_RETURN(dims.*member, w.Int(key));
    if (dims.*member < 0 || dims.*member > kMost)
      return absl::InvalidArgumentError(absl::StrCat(key, " is ", dims.*member));
  }
  return absl::OkStatus();
}

template <class Layer>
struct LayerTensor {
  std::string name;
  std::vector<uint64_t> shape;  // fastest dimension first
  std::vector<float> Layer::*member;
};
template <class Layer>
void DeclareTensors(const std::vector<LayerTensor<Layer>>& tensors, WeightKeys& keys) {
  for (const LayerTensor<Layer>& t : tensors)
    keys.tensors.push_back({t.name, {t.shape.begin(), t.shape.end()}});
}
template <class Layer>
absl::Status ReadTensors(const WeightSource& w, const std::vector<LayerTensor<Layer>>& tensors,
                         Layer& to) {
  for (const LayerTensor<Layer>& t : tensors) {
    SLUICE_ASSIGN_OR_RETURN(to.*t.member, w.ReadF32(t.name, t.shape));
  }
  return absl::OkStatus();
}
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_DIMS_H_
