#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_DIMS_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_DIMS_H_
// The sizes that trained weights say of themselves: one integer a member of a method's Dims, under
// "sluice.METHOD.NAME".
#include <cstddef>
#include <cstdint>
#include <utility>

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
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_DIMS_H_
