#ifndef SLUICE_TESTS_SUPPORT_MODEL_REFERENCE_H_
#define SLUICE_TESTS_SUPPORT_MODEL_REFERENCE_H_
// The bundled model's blocks in double precision and plain loops: what the engine must compute when
// only some tokens run, or see only some keys.
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/functional/function_ref.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace host::reference {
using Rows = std::vector<std::vector<double>>;

inline std::vector<double> Norm(const ModelShape& m, const std::vector<double>& x,
                                const std::vector<float>& w) {
  double square = 0;
  for (double v : x) square += v * v / static_cast<double>(x.size());
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    y[i] = x[i] / std::sqrt(square + static_cast<double>(m.eps)) * static_cast<double>(w[i]);
  return y;
}
inline std::vector<double> Times(const std::vector<float>& w, const std::vector<double>& x) {
  std::vector<double> y(w.size() / x.size());
  for (size_t o = 0; o < y.size(); ++o)
    for (size_t i = 0; i < x.size(); ++i) y[o] += static_cast<double>(w[o * x.size() + i]) * x[i];
  return y;
}
inline void Rope(const ModelShape& m, double* x, int64_t heads, int64_t position) {
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < m.head_dim / 2; ++i, x += 2) {
      const double angle =
          static_cast<double>(position) *
          std::pow(static_cast<double>(m.rope_base),
                   -2.0 * static_cast<double>(i) / static_cast<double>(m.head_dim));
      const double a = x[0], b = x[1];
      x[0] = a * std::cos(angle) - b * std::sin(angle);
      x[1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
}

// The embeddings of the tokens.
inline Rows Embed(const Model& model, const std::vector<int32_t>& tokens) {
  Rows x;
  for (int32_t t : tokens) {
    const float* row = &model.embed[static_cast<size_t>(t * model.shape.width)];
    x.emplace_back(row, row + model.shape.width);
  }
  return x;
}

// Rows [from, from + rows) of a matrix.
inline std::vector<float> RowsOf(const std::vector<float>& w, int64_t from, int64_t rows,
                                 int64_t width) {
  return {w.begin() + from * width, w.begin() + (from + rows) * width};
}
inline std::vector<double> GatedFfn(const std::vector<float>& gate_up,
                                    const std::vector<float>& down, const std::vector<double>& h) {
  std::vector<double> gate = Times(gate_up, h);
  const size_t ffn = gate.size() / 2;
  for (size_t i = 0; i < ffn; ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * gate[ffn + i];
  gate.resize(ffn);
  return Times(down, gate);
}
// Of a Mixture of Experts: the experts of the highest scores, the lower of equals first, mixed by
// the softmax over them alone, which is that over all renormalised.
inline std::vector<double> Ffn(const ModelShape& m, const Layer& l, const std::vector<double>& h) {
  if (m.experts == 0) return GatedFfn(l.gate_up, l.down, h);
  const std::vector<double> score = Times(l.expert_gate, h);
  std::vector<int64_t> chosen;
  double sum = 0;
  for (int64_t k = 0; k < m.experts_used; ++k) {
    int64_t best = -1;
    for (int64_t e = 0; e < m.experts; ++e) {
      if (std::find(chosen.begin(), chosen.end(), e) != chosen.end()) continue;
      if (best < 0 || score[static_cast<size_t>(e)] > score[static_cast<size_t>(best)]) best = e;
    }
    chosen.push_back(best);
    sum += std::exp(score[static_cast<size_t>(best)]);
  }
  std::vector<double> y(h.size());
  for (int64_t e : chosen) {
    const std::vector<double> f = GatedFfn(RowsOf(l.gate_up, e * 2 * m.ffn, 2 * m.ffn, m.width),
                                           RowsOf(l.down, e * m.width, m.width, m.ffn), h);
    for (size_t i = 0; i < y.size(); ++i)
      y[i] += std::exp(score[static_cast<size_t>(e)]) / sum * f[i];
  }
  return y;
}

// A block in which `computed` tokens attend, at their own positions, to the computed keys that
// `sees` lets them, and those `fed` go through the FFN: a dense model with a mask.
inline void MaskedBlock(const ModelShape& m, const Layer& l, const std::vector<bool>& computed,
                        const std::vector<bool>& fed,
                        absl::FunctionRef<bool(size_t query, size_t key)> sees, Rows& x) {
  const size_t d = static_cast<size_t>(m.head_dim);
  const size_t qw = static_cast<size_t>(m.heads) * d;
  const size_t kw = static_cast<size_t>(m.kv_heads) * d;
  Rows qkv(x.size());
  for (size_t t = 0; t < x.size(); ++t) {
    qkv[t] = Times(l.qkv, Norm(m, x[t], l.attn_norm));
    Rope(m, qkv[t].data(), m.heads, static_cast<int64_t>(t));
    Rope(m, qkv[t].data() + qw, m.kv_heads, static_cast<int64_t>(t));
  }

  Rows y = x;
  for (size_t t = 0; t < x.size(); ++t) {
    if (!computed[t]) continue;
    std::vector<double> mix(qw);
    for (size_t h = 0; h < static_cast<size_t>(m.heads); ++h) {
      const size_t kv = h / static_cast<size_t>(m.heads / m.kv_heads);
      double sum = 0;
      for (size_t j = 0; j <= t; ++j) {
        if (!computed[j] || !sees(t, j)) continue;
        double dot = 0;
        for (size_t i = 0; i < d; ++i) dot += qkv[t][h * d + i] * qkv[j][qw + kv * d + i];
        const double p = std::exp(dot / std::sqrt(static_cast<double>(d)));
        sum += p;
        for (size_t i = 0; i < d; ++i) mix[h * d + i] += p * qkv[j][qw + kw + kv * d + i];
      }
      for (size_t i = 0; i < d; ++i) mix[h * d + i] /= sum;
    }
    const std::vector<double> a = Times(l.attn_out, mix);
    for (size_t i = 0; i < a.size(); ++i) y[t][i] += a[i];
  }
  for (size_t t = 0; t < x.size(); ++t) {
    if (!fed[t]) continue;
    const std::vector<double> f = Ffn(m, l, Norm(m, y[t], l.ffn_norm));
    for (size_t i = 0; i < f.size(); ++i) y[t][i] += f[i];
  }
  x = y;
}
inline void MaskedBlock(const ModelShape& m, const Layer& l, const std::vector<bool>& computed,
                        absl::FunctionRef<bool(size_t query, size_t key)> sees, Rows& x) {
  MaskedBlock(m, l, computed, computed, sees, x);
}

// The logits of a token of vocabulary entries 0, stride, 2 stride, ...
inline std::vector<double> LogitsOf(const Model& model, const std::vector<double>& x,
                                    int64_t stride) {
  const ModelShape& m = model.shape;
  const std::vector<double> last = Norm(m, x, model.norm);
  std::vector<double> out;
  for (int64_t v = 0; v < m.vocab; v += stride) {
    double sum = 0;
    for (int64_t i = 0; i < m.width; ++i)
      sum += last[static_cast<size_t>(i)] *
             static_cast<double>(model.head()[static_cast<size_t>(v * m.width + i)]);
    out.push_back(sum);
  }
  return out;
}
// How far `got`, the logits of every token, lie from those of the states x at vocabulary entries 0,
// stride, 2 stride, ..., relative to their length.
inline double RelativeError(const Model& model, const Rows& x, const std::vector<float>& got,
                            int64_t stride) {
  double error = 0;
  double square = 0;
  for (size_t t = 0; t < x.size(); ++t) {
    const std::vector<double> want = LogitsOf(model, x[t], stride);
    const float* row = &got[t * static_cast<size_t>(model.shape.vocab)];
    for (size_t v = 0; v < want.size(); ++v) {
      const double apart = static_cast<double>(row[static_cast<size_t>(stride) * v]) - want[v];
      error += apart * apart;
      square += want[v] * want[v];
    }
  }
  return std::sqrt(error / square);
}
}  // namespace host::reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_MODEL_REFERENCE_H_
