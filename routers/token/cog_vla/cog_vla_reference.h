#ifndef SLUICE_ROUTERS_TOKEN_COG_VLA_COG_VLA_REFERENCE_H_
#define SLUICE_ROUTERS_TOKEN_COG_VLA_COG_VLA_REFERENCE_H_
// The specification: plain loops in double precision, over the tokens h of one sequence. Ties go to
// the earlier token; a visual token of a NaN score does not run.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/runtime/kernels/linear_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
struct PruningRouting {
  const WeightSource& weights;
  std::string at;  // "blk.L.cog_vla."

  // softmax(W rmsnorm(h))[1] of a token.
  double Probability(const std::vector<double>& h) const {
    double square = 0;
    for (double x : h) square += x * x;
    const double root = std::sqrt(square / static_cast<double>(h.size()) + 1e-6);
    const uint64_t shape[] = {h.size()};
    const std::vector<float> norm = *weights.ReadF32(at + "norm.weight", shape);
    std::vector<double> x;
    for (size_t c = 0; c < h.size(); ++c) x.push_back(h[c] / root * static_cast<double>(norm[c]));
    const std::vector<double> z = Affine(weights, at + "router", x, 2);
    return std::exp(z[1]) / (std::exp(z[0]) + std::exp(z[1]));
  }
  // Which tokens run, where those of [first, first + visual) are visual and `share` of them run.
  std::vector<bool> Runs(const std::vector<std::vector<double>>& h, size_t first, size_t visual,
                         double share) const {
    std::vector<double> s;
    for (const auto& token : h) s.push_back(Probability(token));
    const size_t end = std::min(h.size(), first + visual);
    const size_t m = end > first ? end - first : 0;
    const auto keep = static_cast<size_t>(share * static_cast<double>(m));
    std::vector<bool> runs(h.size(), true);
    for (size_t i = first; i < end && keep < m; ++i) {
      size_t ahead = 0;
      for (size_t o = first; o < end; ++o) ahead += s[o] > s[i] || (s[o] == s[i] && o < i);
      runs[i] = !std::isnan(s[i]) && ahead < keep;
    }
    return runs;
  }
};
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_TOKEN_COG_VLA_COG_VLA_REFERENCE_H_
