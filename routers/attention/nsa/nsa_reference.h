#ifndef SLUICE_ROUTERS_ATTENTION_NSA_NSA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_NSA_NSA_REFERENCE_H_
// NSA in plain loops and double precision, one query at a time.
#include <algorithm>
#include <cmath>
#include <vector>

#include "sluice/api/attention_router.h"

SLUICE_BEGIN_NAMESPACE
struct NsaReference {
  enum Phi { kMean, kWeighted, kLinear };
  int64_t l = 32;
  int64_t stride = 16;
  int64_t block = 64;
  int64_t n = 16;
  int64_t init = 1;
  int64_t local = 2;
  int64_t window = 512;
  Phi phi = kMean;
  std::vector<float> position, key_map, value_map, gate, gate_bias;
  double fixed[3] = {0, 1, 0};  // where `gate` is empty

  using Vector = std::vector<double>;
  struct Row {
    Vector o;                     // [dv]
    std::vector<uint32_t> keys;   // of the selected blocks and the window, sorted
    std::vector<int64_t> blocks;  // selected
  };

  Vector Mapped(const std::vector<Vector>& x, const std::vector<float>& map, int64_t kv) const {
    const int64_t width = std::ssize(x[0]);
    Vector out(width);
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t j = 0; j < l; ++j) {
        if (phi == kMean) out[c] += x[j][c] / static_cast<double>(l);
        if (phi == kWeighted) out[c] += x[j][c] * map[kv * l + j];
        for (int64_t i = 0; i < width && phi == kLinear; ++i)
          out[c] += x[j][i] * map[((kv * width + c) * l + j) * width + i];
      }
    }
    return out;
  }
  // Compressed block i: its key, turned to the block's start, and its value.
  Vector Key(const AttentionInputs& in, int64_t kv, int64_t i) const {
    const int64_t d = in.k.dim;
    std::vector<Vector> x(l, Vector(d));
    for (int64_t j = 0; j < l; ++j) {
      for (int64_t c = 0; c < d; ++c) {
        x[j][c] = in.k_pre.Get(i * stride + j, kv, c);
        if (!position.empty()) x[j][c] += position[(kv * l + j) * d + c];
      }
    }
    Vector key = Mapped(x, key_map, kv);
    for (int64_t c = 0; c + 1 < d && in.rope_base > 0; c += 2) {
      const double angle = static_cast<double>(i * stride) *
                           std::pow(in.rope_base, -static_cast<double>(c) / static_cast<double>(d));
      const double a = key[c];
      const double b = key[c + 1];
      key[c] = a * std::cos(angle) - b * std::sin(angle);
      key[c + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
    return key;
  }
  Vector Value(const AttentionInputs& in, int64_t kv, int64_t i) const {
    std::vector<Vector> x(l, Vector(in.v.dim));
    for (int64_t j = 0; j < l; ++j) {
      for (int64_t c = 0; c < in.v.dim; ++c) x[j][c] = in.v.Get(i * stride + j, kv, c);
    }
    return Mapped(x, value_map, kv);
  }

  // Probabilities of the compressed blocks that query i of head h sees.
  Vector Probabilities(const AttentionInputs& in, int64_t i, int64_t h,
                       const std::vector<Vector>& keys) const {
    const int64_t t = in.q_begin + i;
    Vector p;
    double total = 0;
    for (int64_t r = 0; r * stride + l - 1 <= t; ++r) {
      double logit = 0;
      for (int64_t c = 0; c < in.q.dim; ++c) logit += in.q.at(i, h)[c] * keys[r][c];
      p.push_back(std::exp(logit * in.scale));
      total += p.back();
    }
    for (double& e : p) e /= total;
    return p;
  }

  std::vector<int64_t> Selected(const AttentionInputs& in, int64_t i, int64_t kv,
                                const std::vector<Vector>& keys) const {
    const int64_t g = in.q.heads / in.k.heads;
    const int64_t own = (in.q_begin + i) / block;
    Vector score(own + 1);
    for (int64_t h = kv * g; h < (kv + 1) * g; ++h) {
      const Vector p = Probabilities(in, i, h, keys);
      for (int64_t j = 0; j <= own; ++j) {
        for (int64_t m = 0; m < block / stride; ++m) {  // the paper's double sum
          for (int64_t back = 0; back < l / stride; ++back) {
            const int64_t at = block / stride * j + m - back;
            if (at >= 0 && at < std::ssize(p)) score[j] += p[at];
          }
        }
      }
    }
    std::vector<bool> taken(own + 1);
    int64_t count = 0;
    for (int64_t b = 0; b <= own; ++b) {
      taken[b] = b < init || b > own - local;
      count += taken[b];
    }
    for (; count < n && count <= own; ++count) {
      int64_t best = -1;
      for (int64_t b = 0; b <= own; ++b) {
        if (!taken[b] && (best < 0 || score[b] > score[best])) best = b;
      }
      taken[best] = true;
    }
    std::vector<int64_t> blocks;
    for (int64_t b = 0; b <= own; ++b) {
      if (taken[b]) blocks.push_back(b);
    }
    return blocks;
  }

  double Gate(const AttentionInputs& in, int64_t i, int64_t h, int64_t branch) const {
    if (gate.empty()) return fixed[branch];
    double logit = gate_bias[h * 3 + branch];
    for (int64_t x = 0; x < in.hidden.cols; ++x)
      logit +=
          static_cast<double>(in.hidden.row(i)[x]) * gate[(h * 3 + branch) * in.hidden.cols + x];
    return 1 / (1 + std::exp(-logit));
  }
  // Softmax attention of one query over some keys.
  Vector Exact(const AttentionInputs& in, int64_t i, int64_t h,
               const std::vector<uint32_t>& keys) const {
    const int64_t kv = h / (in.q.heads / in.k.heads);
    Vector o(in.v.dim);
    double total = 0;
    for (uint32_t s : keys) {
      double logit = 0;
      for (int64_t c = 0; c < in.q.dim; ++c) logit += in.q.at(i, h)[c] * in.k.Get(s, kv, c);
      const double w = std::exp(logit * in.scale);
      total += w;
      for (int64_t c = 0; c < in.v.dim; ++c) o[c] += w * in.v.Get(s, kv, c);
    }
    for (double& e : o) e /= total;
    return o;
  }

  // compressed: [kv_heads][rows] of Key and Value.
  Row Query(const AttentionInputs& in, int64_t i, int64_t h,
            const std::vector<std::vector<Vector>>& keys,
            const std::vector<std::vector<Vector>>& values) const {
    const int64_t kv = h / (in.q.heads / in.k.heads);
    const int64_t t = in.q_begin + i;
    Row row;
    row.blocks = Selected(in, i, kv, keys[kv]);
    std::vector<uint32_t> selected;
    std::vector<uint32_t> last;
    for (int64_t b : row.blocks) {
      for (int64_t s = b * block; s < (b + 1) * block && s <= t; ++s)
        selected.push_back(static_cast<uint32_t>(s));
    }
    for (int64_t s = std::max<int64_t>(0, t - window + 1); s <= t; ++s)
      last.push_back(static_cast<uint32_t>(s));

    row.o.resize(in.v.dim);
    const Vector p = Probabilities(in, i, h, keys[kv]);
    const Vector slc = Exact(in, i, h, selected);
    const Vector win = Exact(in, i, h, last);
    for (int64_t c = 0; c < in.v.dim; ++c) {
      double cmp = 0;
      for (int64_t r = 0; r < std::ssize(p); ++r) cmp += p[r] * values[kv][r][c];
      row.o[c] = Gate(in, i, h, 0) * cmp + Gate(in, i, h, 1) * slc[c] + Gate(in, i, h, 2) * win[c];
    }
    row.keys = selected;
    row.keys.insert(row.keys.end(), last.begin(), last.end());
    std::sort(row.keys.begin(), row.keys.end());
    return row;
  }

  std::vector<std::vector<Vector>> Table(const AttentionInputs& in, bool of_keys) const {
    std::vector<std::vector<Vector>> table(in.k.heads);
    for (int64_t kv = 0; kv < in.k.heads; ++kv) {
      for (int64_t i = 0; i * stride + l <= in.k.rows; ++i)
        table[kv].push_back(of_keys ? Key(in, kv, i) : Value(in, kv, i));
    }
    return table;
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_NSA_NSA_REFERENCE_H_
