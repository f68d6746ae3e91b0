#include "sluice/runtime/lab/evaluate/planted.h"

#include <algorithm>
#include <cmath>

#include "sluice/api/check.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/dynload/installed.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr int64_t kNeedles = 8;
constexpr int64_t kStripe = 256;
constexpr float kPull = 10;  // of a planted key on the queries that follow it, in logits

// Roughly normal: the sum of four uniform numbers, scaled to variance 1.
float Noise(uint64_t seed, uint64_t stream, uint64_t i) {
  double sum = -2;
  for (uint64_t n = 0; n < 4; ++n) sum += RandomUniform({seed, stream, n, 0, i});
  return static_cast<float>(sum * 1.7320508);
}

class Maker {
 public:
  Maker(PlantedKind kind, int64_t keys, int64_t queries, uint64_t seed) : kind_(kind), seed_(seed) {
    data_.keys = keys;
    data_.queries = queries;
  }
  PlantedData Make() {
    const auto size = static_cast<size_t>(data_.keys * data_.kv_heads * data_.dim);
    data_.k.resize(size);
    data_.v.resize(size);
    for (size_t i = 0; i < size; ++i) {
      data_.k[i] = Noise(seed_, 1, i) * 0.3f;
      data_.v[i] = Noise(seed_, 2, i);
    }
    data_.q.resize(static_cast<size_t>(data_.queries * data_.heads * data_.dim));
    for (size_t i = 0; i < data_.q.size(); ++i) data_.q[i] = Noise(seed_, 3, i) * 0.3f;
    MakeTopics();
    for (int64_t s = 0; s < data_.keys; ++s) AddToKey(s);
    for (int64_t t = 0; t < data_.queries; ++t) AddToQuery(t);
    return std::move(data_);
  }

 private:
  // A direction of length such that a query and a key of it have kPull logits.
  float Direction(uint64_t which, int64_t x) const {
    const float length = std::sqrt(kPull * std::sqrt(static_cast<float>(data_.dim)));
    const bool up = (RandomBits({seed_, 4, which, 0, static_cast<uint64_t>(x)}) & 1) != 0;
    return (up ? length : -length) / std::sqrt(static_cast<float>(data_.dim));
  }
  void AddDirection(float* row, int64_t heads, uint64_t which, float weight) const {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t x = 0; x < data_.dim; ++x)
        row[h * data_.dim + x] += weight * Direction(which, x);
    }
  }
  void MakeTopics() {
    if (kind_ != PlantedKind::kTopics) return;
    topic_.resize(static_cast<size_t>(data_.keys));
    uint64_t topic = 0;
    int64_t until = 0;
    for (int64_t s = 0; s < data_.keys; ++s) {
      if (s == until) {
        ++topic;
        until += 200 + static_cast<int64_t>(600 * RandomUniform({seed_, 5, 0, 0, topic}));
      }
      topic_[static_cast<size_t>(s)] = topic;
    }
  }
  int64_t NeedleAt(uint64_t needle) const {
    return static_cast<int64_t>(RandomUniform({seed_, 6, 0, 0, needle}) *
                                static_cast<double>(data_.keys - data_.queries / 2));
  }
  void AddToKey(int64_t s) {
    float* row = data_.k.data() + s * data_.kv_heads * data_.dim;
    if (kind_ == PlantedKind::kNeedles) {
      for (uint64_t n = 0; n < kNeedles; ++n) {
        if (NeedleAt(n) == s) AddDirection(row, data_.kv_heads, 100 + n, 1);
      }
    } else if (kind_ == PlantedKind::kSinkRecent) {
      if (s < 4) AddDirection(row, data_.kv_heads, 1, 1);
      // Directions of neighbours overlap: a walk through 64 of them.
      AddDirection(row, data_.kv_heads, 200 + static_cast<uint64_t>(s / 64), 0.6f);
    } else if (kind_ == PlantedKind::kTopics) {
      AddDirection(row, data_.kv_heads, 300 + topic_[static_cast<size_t>(s)], 0.6f);
    } else if (RandomBits({seed_, 7, 0, 0, static_cast<uint64_t>(s)}) % kStripe == 0) {
      AddDirection(row, data_.kv_heads, 2, 0.7f);
    }
  }
  void AddToQuery(int64_t t) {
    const int64_t s = data_.keys - data_.queries + t;
    float* row = data_.q.data() + t * data_.heads * data_.dim;
    const auto draw = static_cast<uint64_t>(t);
    if (kind_ == PlantedKind::kNeedles) {
      AddDirection(row, data_.heads, 100 + RandomBits({seed_, 8, 0, 0, draw}) % kNeedles, 1);
    } else if (kind_ == PlantedKind::kSinkRecent) {
      AddDirection(row, data_.heads, 1, 0.7f);
      AddDirection(row, data_.heads, 200 + static_cast<uint64_t>(s / 64), 0.6f);
    } else if (kind_ == PlantedKind::kTopics) {
      const uint64_t own = topic_[static_cast<size_t>(s)];
      AddDirection(row, data_.heads, 300 + own, 0.5f);
      AddDirection(row, data_.heads, 300 + 1 + RandomBits({seed_, 9, 0, 0, own}) % own, 0.7f);
    } else {
      AddDirection(row, data_.heads, 2, 0.7f);
    }
  }

  const PlantedKind kind_;
  const uint64_t seed_;
  PlantedData data_;
  std::vector<uint64_t> topic_;  // of every key
};
}  // namespace

AttentionInputs PlantedData::Inputs(int64_t first, int64_t count) const {
  const int64_t seen = keys - queries + first + count;
  AttentionInputs in;
  in.q = {q.data() + first * heads * dim, count, heads, dim, heads * dim, dim};
  in.k = {k.data(), DType::kF32, seen, kv_heads, dim, kv_heads * dim, dim};
  in.v = {v.data(), DType::kF32, seen, kv_heads, dim, kv_heads * dim, dim};
  in.q_begin = seen - count;
  in.prompt_end = keys;
  in.scale = 1 / std::sqrt(static_cast<float>(dim));
  in.q_pre = in.q;  // as if there were no rotation
  in.k_pre = in.k;
  return in;
}

PlantedData MakePlanted(PlantedKind kind, int64_t keys, int64_t queries, uint64_t seed) {
  return Maker(kind, keys, queries, seed).Make();
}

absl::StatusOr<PlantedResult> RunPlanted(const PlantedData& data, const std::string& policy,
                                         const PlantedOptions& options) {
  const int64_t chunk = std::min(options.chunk, data.queries);
  SessionOptions o;
  o.heads = static_cast<int>(data.heads);
  o.kv_heads = static_cast<int>(data.kv_heads);
  o.head_dim = static_cast<int>(data.dim);
  o.max_queries = chunk;
  o.max_kv = data.keys;
  o.policy = policy;
  o.methods = &InstalledMethods().registry;
  o.threads = options.threads;
  SLUICE_ASSIGN_OR_RETURN(const auto session, AttentionSession::Create(o));
  const int64_t width = data.heads * data.dim;
  std::vector<float> out(static_cast<size_t>(chunk * width));
  PlantedResult result;
  const auto see = [&](int, const AttentionPlan& plan, const AttentionInputs& in, double) {
    if (options.quality_stride == 0) return;
    const HeadsView<const float> made = {out.data(), in.q.rows, data.heads,
                                         data.dim,   width,     data.dim};
    result.quality.Add(
        MeasurePlan(plan, in.q, in.k, in.v, in.scale, made, {options.quality_stride, 64}));
  };
  session->OnPlan(see);
  for (int64_t first = 0; first < data.queries; first += chunk) {
    const int64_t count = std::min(chunk, data.queries - first);
    const HeadsView<float> to = {out.data(), count, data.heads, data.dim, width, data.dim};
    SLUICE_RETURN_IF_ERROR(session->Run(0, data.Inputs(first, count), {.o = to}));
  }
  result.plan_s = session->plan_seconds(0);
  result.attend_s = session->attend_seconds(0);
  result.density = session->counters(0).density();
  result.state_bytes =
      static_cast<int64_t>(session->info().state_bytes + session->info().sequence_bytes);
  result.workspace_bytes = static_cast<int64_t>(session->info().workspace_bytes);
  return result;
}
}  // namespace lab
SLUICE_END_NAMESPACE
