#ifndef SLUICE_ROUTERS_EXPERT_PRODUCT_KEY_MEMORY_PRODUCT_KEY_MEMORY_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_PRODUCT_KEY_MEMORY_PRODUCT_KEY_MEMORY_REFERENCE_H_
// The specification: plain loops in double precision, every pair of keys looked at.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/runtime/kernels/linear_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
struct KeyMemory {
  const WeightSource& weights;
  std::string at;  // "blk.L.pkm."
  int64_t n1, n2, key, value;

  // keys . q, one number a key.
  std::vector<double> Half(const std::string& name, int64_t n, const double* q) const {
    const uint64_t shape[] = {static_cast<uint64_t>(key), static_cast<uint64_t>(n)};
    const std::vector<float> keys = *weights.ReadF32(at + name, shape);
    std::vector<double> s(n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < key; ++c) s[i] += static_cast<double>(keys[i * key + c]) * q[c];
    }
    return s;
  }
  static int64_t Ahead(const std::vector<double>& s, int64_t i) {
    int64_t n = 0;
    for (int64_t j = 0; j < std::ssize(s); ++j) n += s[j] > s[i] || (s[j] == s[i] && j < i);
    return n;
  }

  // Weight of every slot, 0 of those not read: of the best t of each half (`pairs`), or of the best
  // t of all n1 * n2, looked through one by one.
  std::vector<double> Weights(const std::vector<double>& x, int64_t t, bool pairs) const {
    const std::vector<double> q = Affine(weights, at + "query", x, 2 * key);
    const std::vector<double> s1 = Half("keys1.weight", n1, q.data());
    const std::vector<double> s2 = Half("keys2.weight", n2, q.data() + key);
    std::vector<double> sums(n1 * n2);
    for (int64_t i = 0; i < n1; ++i) {
      for (int64_t j = 0; j < n2; ++j) sums[i * n2 + j] = s1[i] + s2[j];
    }
    std::vector<double> w(n1 * n2);
    double total = 0;
    for (int64_t slot = 0; slot < n1 * n2; ++slot) {
      const bool in =
          pairs ? Ahead(s1, slot / n2) < t && Ahead(s2, slot % n2) < t : Ahead(sums, slot) < t;
      if (in) w[slot] = std::exp(sums[slot]);
      total += w[slot];
    }
    const double gate = 1 / (1 + std::exp(-Affine(weights, at + "gate", x, 1)[0]));
    for (double& v : w) v *= gate / total;
    return w;
  }

  // x + gate * W_out(sum of weight value): the values summed first, then projected.
  std::vector<double> Read(const std::vector<double>& x, int64_t t, bool pairs) const {
    const std::vector<double> w = Weights(x, t, pairs);
    const uint64_t shape[] = {static_cast<uint64_t>(value), static_cast<uint64_t>(n1 * n2)};
    const std::vector<float> values = *weights.ReadF32(at + "values.weight", shape);
    const double gate = 1 / (1 + std::exp(-Affine(weights, at + "gate", x, 1)[0]));
    std::vector<double> sum(value);
    for (int64_t slot = 0; slot < n1 * n2; ++slot) {
      for (int64_t c = 0; c < value; ++c)
        sum[c] += w[slot] / gate * static_cast<double>(values[slot * value + c]);
    }
    std::vector<double> y = Affine(weights, at + "out", sum, std::ssize(x));
    for (size_t c = 0; c < x.size(); ++c) y[c] = x[c] + gate * y[c];
    return y;
  }
};
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_PRODUCT_KEY_MEMORY_PRODUCT_KEY_MEMORY_REFERENCE_H_
