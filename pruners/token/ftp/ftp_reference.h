#ifndef SLUICE_PRUNERS_TOKEN_FTP_FTP_REFERENCE_H_
#define SLUICE_PRUNERS_TOKEN_FTP_FTP_REFERENCE_H_
// Plain double-precision loops: the specification of the factors, the score and the router.
#include <cmath>
#include <string>
#include <vector>

#include "sluice/api/tensor_view.h"
#include "sluice/runtime/kernels/linear_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
inline std::vector<std::vector<double>> FtpFactors(const std::vector<double>& score,
                                                   double sparsity, bool causal) {
  const size_t n = score.size();
  std::vector<std::vector<double>> f;
  for (size_t t = 0; t < n; ++t) {
    size_t rank = 0, of = causal ? t + 1 : n;
    for (size_t o = 0; o < of; ++o) rank += score[o] > score[t] || (score[o] == score[t] && o < t);
    f.push_back({n > 1 ? static_cast<double>(t) / static_cast<double>(n - 1) : 0,
                 std::log1p(std::max(score[t], 0.0)),
                 static_cast<double>(rank) / static_cast<double>(of), sparsity});
  }
  return f;
}
// q: the queries of the last q.rows keys.
inline std::vector<double> ReceivedAttention(const HeadsView<const float>& q, const KvView& k,
                                             double scale) {
  std::vector<double> out(k.rows);
  for (int64_t h = 0; h < q.heads; ++h) {
    for (int64_t i = 0; i < q.rows; ++i) {
      const int64_t at = k.rows - q.rows + i;
      std::vector<double> p;
      double total = 0;
      for (int64_t j = 0; j <= at; ++j) {
        double dot = 0;
        for (int64_t c = 0; c < q.dim; ++c)
          dot += static_cast<double>(q.at(i, h)[c]) *
                 static_cast<double>(k.Get(j, h * k.heads / q.heads, c));
        p.push_back(std::exp(dot * scale));
        total += p.back();
      }
      for (int64_t j = 0; j <= at; ++j) out[j] += p[j] / total;
    }
  }
  for (int64_t j = 0; j < k.rows; ++j)
    out[j] *= static_cast<double>(k.rows) /
              (static_cast<double>(q.heads) * static_cast<double>(std::min(q.rows, k.rows - j)));
  return out;
}
inline std::vector<double> FtpLogits(const WeightSource& w, const std::vector<double>& factors,
                                     size_t hidden) {
  std::vector<double> h = Affine(w, "ftp.router0", factors, hidden);
  for (double& x : h) x = std::max(x, 0.0);
  return Affine(w, "ftp.router1", h, 2);
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_TOKEN_FTP_FTP_REFERENCE_H_
