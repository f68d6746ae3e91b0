#ifndef SLUICE_ROUTERS_ATTENTION_ROUTING_TRANSFORMER_ROUTING_TRANSFORMER_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_ROUTING_TRANSFORMER_ROUTING_TRANSFORMER_REFERENCE_H_
// Routing Transformer in plain loops and double precision. A call of one query is a decode step,
// whose earlier keys came with the same centroids.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct RoutingTransformerReference {
  int64_t clusters = 64;
  int64_t members = 0;
  int64_t local_heads = 0;
  int64_t window = 256;
  enum Norm { kLayer, kL2, kNone } norm = kLayer;
  bool before_rope = true;
  bool own_key_of_orphans = false;
  enum Cap { kAll, kLatest, kBest } cap = kAll;
  std::vector<float> centroids;  // [routed heads, clusters, d]; empty: k-means over the one call
  int64_t rounds = 3;
  double decay = 0.5;

  using Vector = reference::Vector;
  using Memberships = std::vector<std::vector<uint32_t>>;  // a list of keys each

  Vector Normalised(Vector x) const {
    if (norm == kNone) return x;
    double mean = 0;
    for (double e : x) mean += e / static_cast<double>(x.size());
    if (norm == kL2) mean = 0;
    double squares = 0;
    for (double& e : x) {
      e -= mean;
      squares += e * e;
    }
    const double spread = norm == kL2 ? std::sqrt(squares)
                                      : std::sqrt(squares / static_cast<double>(x.size()) + 1e-5);
    for (double& e : x) e = spread == 0 ? e : e / spread;
    return x;
  }
  std::vector<Vector> QueriesOf(const AttentionInputs& in, int64_t head) const {
    std::vector<Vector> all;
    for (int64_t i = 0; i < in.q.rows; ++i)
      all.push_back(Normalised(reference::Query(before_rope ? in.q_pre : in.q, i, head, 1)));
    return all;
  }
  std::vector<Vector> KeysOf(const AttentionInputs& in, int64_t head) const {
    std::vector<Vector> all;
    for (int64_t s = 0; s < in.k.rows; ++s)
      all.push_back(Normalised(
          reference::Key(before_rope ? in.k_pre : in.k, s, head / (in.q.heads / in.k.heads))));
    return all;
  }

  int64_t Size(int64_t tokens) const {
    if (members > 0) return std::min(members, tokens);
    return std::max<int64_t>(1, tokens / clusters);
  }
  std::vector<int64_t> TakenBy(const Vector& centroid, const std::vector<Vector>& tokens) const {
    Vector score;
    for (const Vector& x : tokens) score.push_back(reference::Product(x, centroid));
    return reference::Best(score, Size(std::ssize(tokens)));
  }
  // -1: none.
  static int64_t Nearest(const Vector& x, const std::vector<Vector>& all, double* likeness) {
    int64_t best = -1;
    for (int64_t c = 0; c < std::ssize(all); ++c) {
      const double score = reference::Product(x, all[c]);
      if (std::isnan(score) || (best >= 0 && score <= *likeness)) continue;
      best = c;
      *likeness = score;
    }
    return best;
  }

  std::vector<Vector> CentroidsOf(const AttentionInputs& in, int64_t head) const {
    const int64_t d = in.q.dim;
    std::vector<Vector> all;
    if (!centroids.empty()) {
      for (int64_t c = 0; c < clusters; ++c) {
        const float* from = centroids.data() + ((head - local_heads) * clusters + c) * d;
        all.emplace_back(from, from + d);
      }
      return all;
    }
    const std::vector<Vector> queries = QueriesOf(in, head);
    const std::vector<Vector> keys = KeysOf(in, head);
    for (int64_t c = 0; c < clusters; ++c) {
      const double middle = (static_cast<double>(c) + 0.5) / static_cast<double>(clusters);
      all.push_back(keys[static_cast<size_t>(middle * static_cast<double>(keys.size()))]);
    }
    for (int64_t round = 0; round < rounds; ++round) {
      std::vector<Vector> next = all;
      for (int64_t c = 0; c < clusters; ++c) {
        for (double& e : next[c]) e *= decay;
        for (const std::vector<Vector>* tokens : {&keys, &queries}) {
          const std::vector<int64_t> taken = TakenBy(all[c], *tokens);
          for (int64_t i : taken) {
            for (int64_t x = 0; x < d; ++x)
              next[c][x] +=
                  (1 - decay) * (*tokens)[i][x] / (2.0 * static_cast<double>(taken.size()));
          }
        }
      }
      all = next;
    }
    return all;
  }

  // What query i of a head sees: one list a cluster.
  std::vector<Memberships> Head(const AttentionInputs& in, int64_t head) const {
    std::vector<Memberships> of_queries(in.q.rows);
    const auto position = [&](int64_t i) { return in.q_begin + i; };
    if (head < local_heads) {
      for (int64_t i = 0; i < in.q.rows; ++i) {
        std::vector<uint32_t> keys;
        for (int64_t s = 0; s <= position(i); ++s) {
          if (s > position(i) - window) keys.push_back(static_cast<uint32_t>(s));
        }
        of_queries[i].push_back(keys);
      }
      return of_queries;
    }
    const std::vector<Vector> queries = QueriesOf(in, head);
    const std::vector<Vector> keys = KeysOf(in, head);
    const std::vector<Vector> all = CentroidsOf(in, head);
    const auto seen = [&](int64_t i, const std::vector<int64_t>& ids) {
      std::vector<uint32_t> list;
      for (int64_t s : ids) {
        if (s <= position(i)) list.push_back(static_cast<uint32_t>(s));
      }
      if (!list.empty()) of_queries[i].push_back(list);
    };
    double likeness = 0;
    if (in.q.rows == 1) {
      const int64_t own = Nearest(queries[0], all, &likeness);
      std::vector<int64_t> ids;
      Vector score;
      for (int64_t s = 0; s < in.k.rows && own >= 0; ++s) {
        if (Nearest(keys[s], all, &likeness) != own) continue;
        ids.push_back(s);
        score.push_back(likeness);
      }
      const int64_t most = Size(in.k.rows);
      if (cap == kLatest && std::ssize(ids) > most) ids.erase(ids.begin(), ids.end() - most);
      if (cap == kBest) {
        std::vector<int64_t> best = reference::Best(score, most);
        for (int64_t& b : best) b = ids[b];
        ids = best;
      }
      seen(0, ids);
    } else {
      for (const Vector& centroid : all) {
        const std::vector<int64_t> ids = TakenBy(centroid, keys);
        for (int64_t i : TakenBy(centroid, queries)) seen(i, ids);
      }
    }
    for (int64_t i = 0; i < in.q.rows; ++i) {
      if (!of_queries[i].empty()) continue;
      if (own_key_of_orphans || Nearest(queries[i], all, &likeness) < 0)
        of_queries[i].push_back({static_cast<uint32_t>(position(i))});
    }
    return of_queries;
  }

  // The mean over the lists of one query.
  static Vector Output(const AttentionInputs& in, int64_t i, int64_t head, const Memberships& all) {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    const Vector q = reference::Query(in.q, i, head, in.scale);
    Vector o(in.v.dim);
    for (const std::vector<uint32_t>& keys : all) {
      Vector logits;
      for (uint32_t s : keys) logits.push_back(reference::Product(q, reference::Key(in.k, s, kv)));
      const Vector p = reference::Softmax(logits);
      for (size_t j = 0; j < keys.size(); ++j) {
        for (int64_t x = 0; x < in.v.dim; ++x)
          o[x] += p[j] * in.v.Get(keys[j], kv, x) / static_cast<double>(all.size());
      }
    }
    return o;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    for (int64_t head = 0; head < in.q.heads; ++head) {
      const std::vector<Memberships> of_queries = Head(in, head);
      for (int64_t i = 0; i < in.q.rows; ++i) {
        std::vector<uint32_t>& list = lists[i * in.q.heads + head];
        for (const std::vector<uint32_t>& keys : of_queries[i])
          list.insert(list.end(), keys.begin(), keys.end());
        std::sort(list.begin(), list.end());
      }
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_ROUTING_TRANSFORMER_ROUTING_TRANSFORMER_REFERENCE_H_
