#ifndef SLUICE_TESTS_SUPPORT_RANDOM_WEIGHTS_H_
#define SLUICE_TESTS_SUPPORT_RANDOM_WEIGHTS_H_
// Seeded weights of any shape that a learned router asks for, and features to route.
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/weight_source.h"
#include "sluice/api/workspace.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
class RandomWeights final : public WeightSource {
 public:
  // `ints` by the last part of their key: {"dim", 32} answers sluice.flux.dim.
  explicit RandomWeights(std::map<std::string, int64_t> ints) : ints_(std::move(ints)) {}
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    const auto it = ints_.find(key.substr(key.rfind('.') + 1));
    if (it == ints_.end()) return absl::NotFoundError(absl::StrCat("no key '", key, "'"));
    return it->second;
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override {
    if (name == missing) return absl::NotFoundError(absl::StrCat("no tensor '", name, "'"));
    uint64_t n = 1, seed = 7;
    for (uint64_t s : shape) n *= s;
    for (char c : name) seed = seed * 131 + static_cast<unsigned char>(c);
    std::vector<float> x(n);
    for (uint64_t i = 0; i < n; ++i)
      x[i] = 0.2f * static_cast<float>(RandomUniform({seed, 0, 0, 0, i}) - 0.5);
    return x;
  }
  std::string missing;  // a tensor that is not there

 private:
  std::map<std::string, int64_t> ints_;
};
// [rows, dim], uniform in [-2, 2).
inline std::vector<float> RandomFeatures(int64_t rows, int64_t dim, uint64_t seed) {
  std::vector<float> x(rows * dim);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(4 * RandomUniform({seed, 0, 0, 0, i}) - 2);
  return x;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_RANDOM_WEIGHTS_H_
