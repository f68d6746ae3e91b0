#ifndef SLUICE_TESTS_SUPPORT_SYNTHETIC_WEIGHTS_H_
#define SLUICE_TESTS_SUPPORT_SYNTHETIC_WEIGHTS_H_
// Weights of any learned attention router, made from the keys that it declares: normal values by
// name. Whatever is not declared, or asked for in another shape, is an error.
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/attention_router.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/hash.h"

SLUICE_BEGIN_NAMESPACE
class SyntheticWeights final : public WeightSource {
 public:
  SyntheticWeights(std::vector<WeightKey> keys, uint64_t seed)
      : keys_(std::move(keys)), seed_(seed) {}
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    for (const WeightKey& k : keys_) {
      if (k.name == key && k.shape.empty()) return k.number;
    }
    return absl::NotFoundError(absl::StrCat("number '", key, "' was not declared"));
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override {
    for (const WeightKey& k : keys_) {
      if (k.name != name || k.shape.empty()) continue;
      if (absl::MakeConstSpan(k.shape) != shape) break;
      uint64_t n = 1;
      for (uint64_t d : shape) n *= d;
      const double scale = 1 / std::sqrt(static_cast<double>(shape[0]));
      std::vector<float> x(n);
      for (uint64_t i = 0; i < n; ++i)
        x[i] = static_cast<float>(scale * RandomNormal({seed_, 0, 0, HashText(name), i}));
      return x;
    }
    return absl::NotFoundError(absl::StrCat("tensor '", name, "' was not declared in this shape"));
  }

 private:
  std::vector<WeightKey> keys_;
  uint64_t seed_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_SYNTHETIC_WEIGHTS_H_
