#ifndef SLUICE_ROUTERS_ATTENTION_PSA_PSA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_PSA_PSA_REFERENCE_H_
// PSA in plain loops and double precision: levels of every block of a tile, and attention over
// keys and means that are pooled anew.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "sluice/api/attention_router.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
struct PsaReference {
  int64_t block = 64;
  int64_t tile = 64;
  int64_t sample = 4;
  uint64_t seed = 0;
  bool by_mass = false;
  double ends[4] = {0.05, 0.15, 0.25, 0.5};
  double min_exact = 0;
  bool capped = false;
  double similar[3] = {0.75, 0.7, 0.7};

  using Vector = std::vector<double>;
  static double Product(const Vector& a, const Vector& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  static Vector Query(const AttentionInputs& in, int64_t i, int64_t h) {
    Vector q(in.q.at(i, h), in.q.at(i, h) + in.q.dim);
    for (double& x : q) x *= in.scale;
    return q;
  }
  static Vector MeanOf(const KvView& rows, int64_t kv, int64_t start, int64_t n) {
    Vector mean(rows.dim);
    for (int64_t s = start; s < start + n; ++s) {
      for (int64_t x = 0; x < rows.dim; ++x) mean[x] += rows.Get(s, kv, x) / static_cast<double>(n);
    }
    return mean;
  }
  std::vector<int64_t> Places(int64_t count, uint64_t side) const {
    std::vector<int64_t> places;
    for (int64_t i = 0; i * sample < count; ++i) {
      const uint64_t bits = RandomBits({seed, 0, 0, side, static_cast<uint64_t>(i)});
      const int64_t at = i * sample + static_cast<int64_t>(bits % static_cast<uint64_t>(sample));
      places.push_back(std::min(count - 1, at));
    }
    return places;
  }

  // Of the blocks that end before the tile of query i.
  std::vector<int> Levels(const AttentionInputs& in, int64_t i, int64_t h) const {
    const int64_t kv = h / (in.q.heads / in.k.heads);
    const int64_t from = i / tile * tile;
    const int64_t to = std::min(in.q.rows, from + tile);
    const int64_t blocks = (in.q_begin + from) / block;
    Vector importance(blocks);
    for (int64_t place : Places(to - from, 0)) {
      const Vector q = Query(in, from + place, h);
      Vector most(blocks, -HUGE_VAL);
      for (int64_t b = 0; b < blocks; ++b) {
        for (int64_t key : Places(block, 1))
          most[b] = std::max(most[b], Product(q, MeanOf(in.k, kv, b * block + key, 1)));
      }
      const double row = blocks > 0 ? *std::max_element(most.begin(), most.end()) : 0;
      for (int64_t b = 0; b < blocks; ++b)
        importance[b] = std::max(importance[b], std::exp(most[b] - row));
    }
    const double total = std::accumulate(importance.begin(), importance.end(), 0.0);
    std::vector<int64_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return importance[a] > importance[b]; });
    std::vector<int> level(blocks);
    for (int l = 3; l >= 0; --l) {  // finer ranges overwrite coarser ones
      double held = 0;
      for (int64_t r = 0; r < blocks; ++r) {
        const bool inside = by_mass
                                ? held <= (ends[l] + 1e-6) * total
                                : static_cast<double>(r) < ends[l] * static_cast<double>(blocks);
        const bool least = l == 0 && min_exact > 0 &&
                           r <= static_cast<int64_t>(min_exact * static_cast<double>(blocks));
        if (inside || least) level[order[r]] = 1 << l;
        held += importance[order[r]];
      }
    }
    for (int64_t b = 0; b < blocks && capped; ++b) level[b] = std::min(level[b], Cap(in, kv, b));
    if (blocks > 0) level[0] = 1;
    return level;
  }
  int Cap(const AttentionInputs& in, int64_t kv, int64_t b) const {
    int cap = 1;
    for (int l = 1; l < 4; ++l) {
      double sum = 0;
      for (int64_t g = b * block; g < (b + 1) * block; g += 1 << l) {
        const Vector x = MeanOf(in.k, kv, g, 1);
        const Vector y = MeanOf(in.k, kv, g + (1 << l) - 1, 1);
        sum += Product(x, y) / std::sqrt(Product(x, x) * Product(y, y));
      }
      if (sum / static_cast<double>(block >> l) >= similar[l - 1]) cap = 1 << l;
    }
    return cap;
  }

  struct Row {
    Vector o;
    double lse = 0;
    int64_t exact = 0;
    int64_t summaries = 0;
    std::vector<uint32_t> keys;  // read exactly
  };
  Row Attend(const AttentionInputs& in, const std::vector<int>& level, int64_t i, int64_t h) const {
    const int64_t kv = h / (in.q.heads / in.k.heads);
    const Vector q = Query(in, i, h);
    Row row;
    row.o.resize(in.v.dim);
    double total = 0;
    const auto add = [&](int64_t start, int64_t n) {
      const double w = static_cast<double>(n) * std::exp(Product(q, MeanOf(in.k, kv, start, n)));
      const Vector v = MeanOf(in.v, kv, start, n);
      total += w;
      for (int64_t x = 0; x < in.v.dim; ++x) row.o[x] += w * v[x];
      if (n == 1) row.keys.push_back(static_cast<uint32_t>(start));
      ++(n == 1 ? row.exact : row.summaries);
    };
    for (int64_t b = 0; b < std::ssize(level); ++b) {
      for (int64_t s = b * block; s < (b + 1) * block && level[b] > 0; s += level[b])
        add(s, level[b]);
    }
    for (int64_t s = std::ssize(level) * block; s <= in.q_begin + i; ++s) add(s, 1);
    for (double& x : row.o) x /= total;
    row.lse = std::log(total);
    return row;
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_PSA_PSA_REFERENCE_H_
