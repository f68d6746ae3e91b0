#ifndef SLUICE_ROUTERS_ATTENTION_SALE_SALE_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_SALE_SALE_REFERENCE_H_
// SALE in plain loops and double precision. For every (head, tile, block): how far the largest
// estimated logit lies above its row's threshold (kept: above 0), infinite for blocks always on.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "sluice/api/attention_router.h"

SLUICE_BEGIN_NAMESPACE
struct SaleReference {
  int64_t block = 32;
  int64_t tile = 64;
  int64_t local = 128;
  int64_t align = 128;
  double tau = 0.008;
  bool int4 = true;
  bool smooth = true;

  using Vector = std::vector<double>;
  static double Product(const Vector& a, const Vector& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  // What 4 bits leave of a vector.
  static Vector Rounded(Vector x) {
    double most = 0;
    for (double e : x) most = std::max(most, std::fabs(e));
    for (double& e : x) e = most > 0 ? std::nearbyint(e / most * 7) * most / 7 : 0;
    return x;
  }

  // [head][tile][block]
  std::vector<std::vector<Vector>> Margins(const AttentionInputs& in) const {
    const int64_t d = in.q.dim;
    const int64_t length = in.k.rows;
    std::vector<std::vector<Vector>> margins(in.q.heads);
    for (int64_t h = 0; h < in.q.heads; ++h) {
      const int64_t kv = h / (in.q.heads / in.k.heads);
      std::vector<Vector> keys(length, Vector(d));
      std::vector<Vector> queries(in.q.rows, Vector(d));
      Vector key_mean(d);
      Vector query_mean(d);
      for (int64_t s = 0; s < length; ++s) {
        for (int64_t x = 0; x < d; ++x) {
          keys[s][x] = in.k.Get(s, kv, x);
          key_mean[x] += keys[s][x] / static_cast<double>(length);
        }
      }
      for (int64_t i = 0; i < in.q.rows; ++i) {
        for (int64_t x = 0; x < d; ++x) {
          queries[i][x] = in.q.at(i, h)[x] * static_cast<double>(in.scale);
          query_mean[x] += queries[i][x] / static_cast<double>(in.q.rows);
        }
      }
      for (int64_t from = 0; from < in.q.rows; from += tile) {
        const int64_t to = std::min(in.q.rows, from + tile);
        margins[h].push_back(Tile(keys, queries, key_mean, query_mean, from, to, in.q_begin));
      }
    }
    return margins;
  }

  Vector Tile(const std::vector<Vector>& keys, const std::vector<Vector>& queries,
              const Vector& key_mean, const Vector& query_mean, int64_t from, int64_t to,
              int64_t q_begin) const {
    const int64_t last = q_begin + to - 1;
    // The diagonal region holds `local` keys or more, begins at a multiple of align, and at a block
    // that no query of the tile precedes.
    int64_t diagonal = 0;
    while (diagonal + align <= last + 1 - local) diagonal += align;
    diagonal = std::min(diagonal, q_begin + from) / block * block;

    Vector margin(last / block + 1, -std::numeric_limits<double>::infinity());
    for (int64_t b = 0; b < std::ssize(margin); ++b) {
      if (b == 0 || b * block >= diagonal) margin[b] = std::numeric_limits<double>::infinity();
    }
    for (int64_t i = from; i < to; ++i) {
      double l = 0;
      for (int64_t s = 0; s <= q_begin + i; ++s) {
        if (s < block || s >= diagonal) l += std::exp(Product(queries[i], keys[s]));
      }
      const double threshold = std::log(l) + std::log(tau);
      for (int64_t s = block; s < diagonal; ++s) {
        const double estimate = Estimate(queries[i], keys[s], key_mean, query_mean);
        margin[s / block] = std::max(margin[s / block], estimate - threshold);
      }
    }
    return margin;
  }

  double Estimate(Vector q, Vector k, const Vector& key_mean, const Vector& query_mean) const {
    if (!int4) return Product(q, k);
    double exact = 0;
    if (smooth) {
      exact = Product(q, key_mean);
      for (size_t x = 0; x < q.size(); ++x) {
        q[x] -= query_mean[x];
        k[x] -= key_mean[x];
      }
      exact += Product(query_mean, k);
    }
    return Product(Rounded(q), Rounded(k)) + exact;
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SALE_SALE_REFERENCE_H_
