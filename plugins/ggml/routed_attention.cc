#include "sluice/plugins/ggml/routed_attention.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"
#include "sluice/policies/compose/attention.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dynload/installed.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
namespace {
constexpr uint16_t kHidden = 0xFC00;  // -inf in f16
using Clock = std::chrono::steady_clock;
double Since(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

constexpr int kMostLayers = 1024;

bool AllAre(const uint16_t* x, int64_t n, uint16_t value) {
  uint16_t off = 0;
  for (int64_t i = 0; i < n; ++i) off = static_cast<uint16_t>(off | (x[i] ^ value));
  return off == 0;
}
}  // namespace

absl::StatusOr<Config> ParseConfig(absl::string_view text) {
  Config c;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const auto bad = [&](auto&&... why) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": ", why...));
    };
    const size_t eq = line.find('=');
    if (eq == absl::string_view::npos) return bad("'", line, "' is not key = value");
    const absl::string_view key = absl::StripAsciiWhitespace(line.substr(0, eq)),
                            value = absl::StripAsciiWhitespace(line.substr(eq + 1));
    const auto integer = [&](int64_t least, int64_t most, int64_t& out) {
      int64_t x = 0;
      if (!absl::SimpleAtoi(value, &x) || x < least || x > most)
        return bad(key, " = '", value, "', allowed ", least, " to ", most);
      out = x;
      return absl::OkStatus();
    };
    absl::Status status;
    if (key == "prefill" || key == "decode" || key == "attention") {
      if (const auto made = MakeAttentionPolicy(value, InstalledMethods().registry.attention);
          !made.ok())
        return bad(key, ": ", made.status().message());
      else if ((*made)->traits().reads_pre_rope)
        return bad(key, ": '", value,
                   "' wants keys from before their rotation, which this host does not give");
      if (key != "decode") c.prefill = std::string(value);
      if (key != "prefill") c.decode = std::string(value);
    } else if (key == "min_keys") {
      status = integer(0, int64_t{1} << 31, c.min_keys);
    } else if (key == "decode_min_keys") {
      status = integer(-1, int64_t{1} << 31, c.decode_min_keys);
    } else if (key == "threads") {
      status = integer(0, 1024, c.threads);
    } else if (key == "counters") {
      c.counters = std::string(value);
    } else {
      return bad("unknown key '", key,
                 "'; known: attention, prefill, decode, min_keys, decode_min_keys, "
                 "threads, counters");
    }
    SLUICE_RETURN_IF_ERROR(status);
  }
  return c;
}

MaskShape ReadMask(const uint16_t* mask, int64_t stride, int64_t n_q, int64_t n_kv) {
  MaskShape s;
  if (mask == nullptr || n_q == 0) return s;
  bool causal = true, window = true, zeros = true;
  for (int64_t i = 0; i < n_q; ++i) {
    const uint16_t* row = mask + i * stride;
    // Where the row before this one ended; the first row is searched.
    int64_t begin = 0, end = 0;
    if (i == 0) {
      while (begin < n_kv && row[begin] == kHidden) ++begin;
      end = n_kv;
      while (end > begin && row[end - 1] == kHidden) --end;
      if (begin == end) causal = window = false;  // a query that sees nothing
      s.first = end - 1;
      s.window = begin > 0 ? end - begin : 0;
    } else {
      end = s.first + i + 1;
      begin = s.window > 0 ? std::max<int64_t>(0, end - s.window) : 0;
      if (causal && s.window == 0 && end <= n_kv && begin < end && row[0] == kHidden && i > 0) {
        // A window that begins to cut inside this pass: its width shows at the first hidden key.
        int64_t cut = 0;
        while (cut < end && row[cut] == kHidden) ++cut;
        s.window = end - cut;
        begin = cut;
        causal = false;
      }
    }
    const bool fits = end <= n_kv && begin < end && AllAre(row, begin, kHidden) &&
                      AllAre(row + begin, end - begin, 0) && AllAre(row + end, n_kv - end, kHidden);
    if (!fits) causal = window = false;
    if (begin > 0) causal = false;
    if (!causal && !window) break;
  }
  if (causal) {
    s.kind = MaskShape::Kind::kCausal;
    return s;
  }
  if (window && s.window > 0) {
    s.kind = MaskShape::Kind::kWindow;
    return s;
  }
  for (int64_t i = 0; i < n_q && zeros; ++i) {
    const uint16_t* row = mask + i * stride;
    for (int64_t k = 0; k < n_kv; ++k)
      zeros = zeros && (row[k] == kHidden || row[k] == 0 || row[k] == 0x8000);
  }
  s.kind = zeros ? MaskShape::Kind::kRuns : MaskShape::Kind::kValues;
  return s;
}

// Sessions for prompts, for steps and for what stays dense.
struct RoutedAttention::Shape {
  int64_t max_queries = 0;
  int64_t max_kv = 0;
  std::unique_ptr<AttentionSession> prefill, decode, dense;
  std::vector<float> lse;
};

RoutedAttention::RoutedAttention(const Config& config) : config_(config) {}
RoutedAttention::~RoutedAttention() = default;
absl::StatusOr<std::unique_ptr<RoutedAttention>> RoutedAttention::Create(const Config& config) {
  std::unique_ptr<RoutedAttention> r(new RoutedAttention(config));
  r->executor_ = MakeTbbExecutor(static_cast<int>(config.threads));
  return r;
}
void RoutedAttention::SetThreads(int threads) {
  if (config_.threads > 0 || threads == executor_->num_workers()) return;
  executor_ = MakeTbbExecutor(std::max(1, threads));
  shapes_.clear();  // scratch is sized by workers; states are made again from the cache
}

absl::StatusOr<RoutedAttention::Shape*> RoutedAttention::ShapeOf(const FlashCall& c) {
  uint32_t cap = 0;
  std::memcpy(&cap, &c.softcap, sizeof cap);
  std::unique_ptr<Shape>& slot = shapes_[{c.q.heads, c.k.heads, c.q.dim, c.v.dim, cap}];
  if (slot != nullptr && c.q.rows <= slot->max_queries && c.k.rows <= slot->max_kv)
    return slot.get();
  // Grows by doubling; what routers knew of the keys is found again.
  auto s = std::make_unique<Shape>();
  s->max_queries = std::max<int64_t>(slot != nullptr ? slot->max_queries : 1, c.q.rows);
  s->max_kv = slot != nullptr ? slot->max_kv : 4096;
  while (s->max_kv < c.k.rows) s->max_kv *= 2;
  const auto make = [&](const std::string& policy, int64_t queries,
                        std::unique_ptr<AttentionSession>& session) -> absl::Status {
    SessionOptions o;
    o.layers = kMostLayers;
    o.heads = static_cast<int>(c.q.heads);
    o.kv_heads = static_cast<int>(c.k.heads);
    o.head_dim = static_cast<int>(c.q.dim);
    o.value_dim = static_cast<int>(c.v.dim);
    o.max_queries = queries;
    o.max_kv = s->max_kv;
    o.policy = policy;
    o.methods = &InstalledMethods().registry;
    o.executor = executor_.get();
    o.attend.softcap = c.softcap;
    o.fingerprints = true;
    SLUICE_ASSIGN_OR_RETURN(session, AttentionSession::Create(o));
    return absl::OkStatus();
  };
  SLUICE_RETURN_IF_ERROR(make(config_.prefill, s->max_queries, s->prefill));
  SLUICE_RETURN_IF_ERROR(make(config_.decode, 1, s->decode));
  SLUICE_RETURN_IF_ERROR(make("dense", s->max_queries, s->dense));
  slot = std::move(s);
  return slot.get();
}

bool TakesStep(const Config& c, const AttentionRouter& decode, int layer, int64_t keys,
               int64_t kv_bytes) {
  if (c.decode_min_keys >= 0) return keys >= c.decode_min_keys;
  return kv_bytes >= int64_t{2} << 20 && decode.Serving(layer, keys).name() != "dense";
}
// A sink takes part in the sum and brings no value.
void RoutedAttention::WeighSinks(const FlashCall& c, const std::vector<float>& lse) const {
  for (int64_t i = 0; i < c.q.rows; ++i) {
    for (int64_t h = 0; h < c.q.heads; ++h) {
      const float share = 1 / (1 + std::exp(c.sinks[h] - lse[i * c.q.heads + h]));
      float* o = c.out.at(i, h);
      for (int64_t d = 0; d < c.out.dim; ++d) o[d] *= share;
    }
  }
}

// Any mask, in double precision: for biases that are neither 0 nor -inf.
void RoutedAttention::Plain(const FlashCall& c) {
  const int64_t group = c.q.heads / c.k.heads;
  executor_->ParallelFor(c.q.rows * c.q.heads, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<double> logit(c.k.rows), o(c.v.dim);
    const auto element = [](const KvView& x, int64_t row, int64_t head, int64_t d) -> double {
      const std::byte* p = x.at(row, head);
      if (x.dtype == DType::kF32) return reinterpret_cast<const float*>(p)[d];
      return F16ToF32(reinterpret_cast<const uint16_t*>(p)[d]);
    };
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / c.q.heads, h = i % c.q.heads, kv = h / group;
      double most = c.sinks != nullptr ? static_cast<double>(c.sinks[h]) : -HUGE_VAL, sum = 0;
      for (int64_t k = 0; k < c.k.rows; ++k) {
        double x = 0;
        for (int64_t d = 0; d < c.q.dim; ++d)
          x += static_cast<double>(c.q.at(row, h)[d]) * element(c.k, k, kv, d);
        x *= static_cast<double>(c.scale);
        if (c.softcap > 0)
          x = static_cast<double>(c.softcap) * std::tanh(x / static_cast<double>(c.softcap));
        if (c.mask != nullptr) x += static_cast<double>(F16ToF32(c.mask[row * c.mask_stride + k]));
        logit[k] = x;
        most = std::max(most, x);
      }
      std::fill(o.begin(), o.end(), 0.0);
      if (most == -HUGE_VAL) most = 0;
      if (c.sinks != nullptr) sum = std::exp(static_cast<double>(c.sinks[h]) - most);
      for (int64_t k = 0; k < c.k.rows; ++k) {
        const double w = std::exp(logit[k] - most);
        if (!(w > 0)) continue;
        sum += w;
        for (int64_t d = 0; d < c.v.dim; ++d) o[d] += w * element(c.v, k, kv, d);
      }
      for (int64_t d = 0; d < c.v.dim; ++d)
        c.out.at(row, h)[d] = static_cast<float>(sum > 0 ? o[d] / sum : 0);
    }
  });
}

absl::Status RoutedAttention::Run(const FlashCall& call) {
  FlashCall c = call;
  if (c.q.rows <= 0 || c.k.rows <= 0 || c.q.heads <= 0 || c.k.heads <= 0 ||
      c.q.heads % c.k.heads != 0 || c.q.dim != c.k.dim || c.v.rows != c.k.rows ||
      c.v.heads != c.k.heads || c.out.dim != c.v.dim)
    return absl::InvalidArgumentError(absl::StrCat(
        "flash attention of q [", c.q.rows, ", ", c.q.heads, ", ", c.q.dim, "], k [", c.k.rows,
        ", ", c.k.heads, ", ", c.k.dim, "], v [", c.v.rows, ", ", c.v.heads, ", ", c.v.dim, "]"));
  LayerCounters& counters = counters_[c.layer];
  ++counters.calls;
  auto from = Clock::now();
  if (c.layer < 0 || c.layer <= seen_.layer || seen_.mask != c.mask || seen_.n_q != c.q.rows ||
      seen_.n_kv != c.k.rows || seen_.stream != c.stream) {
    seen_ = {c.mask,   c.q.rows, c.k.rows,
             c.stream, c.layer,  ReadMask(c.mask, c.mask_stride, c.q.rows, c.k.rows)};
  }
  seen_.layer = c.layer;
  const MaskShape& mask = seen_.shape;
  if (mask.kind == MaskShape::Kind::kValues) {
    Plain(c);
    counters.attend_s += Since(from);
    return absl::OkStatus();
  }
  if (mask.kind == MaskShape::Kind::kCausal)
    c.k.rows = c.v.rows = mask.first + c.q.rows;  // caches are padded
  if (c.layer >= kMostLayers)
    return absl::OutOfRangeError(absl::StrCat("layer ", c.layer, ", at most ", kMostLayers - 1));
  SLUICE_ASSIGN_OR_RETURN(Shape* const shape, ShapeOf(c));
  Shape& s = *shape;
  const bool plain = mask.kind == MaskShape::Kind::kCausal;
  const bool routed = plain && c.k.rows >= config_.min_keys;
  AttentionSession& session = !routed ? *s.dense : c.q.rows == 1 ? *s.decode : *s.prefill;
  AttentionInputs in;
  in.q = c.q;
  in.k = c.k;
  in.v = c.v;
  in.q_begin = mask.first;
  in.scale = c.scale;
  SessionOutputs out;
  out.o = c.out;
  if (c.sinks != nullptr) {
    s.lse.resize(c.q.rows * c.q.heads);
    out.lse = s.lse.data();
  }
  const AttentionCounters before = session.counters(c.layer);
  const double planned = session.plan_seconds(c.layer);
  const double attended = session.attend_seconds(c.layer);
  if (plain) {
    // The host does not say when it clears or changes its cache.
    session.Unknown(c.layer, c.stream);
    SLUICE_RETURN_IF_ERROR(session.Run(c.layer, in, out, c.stream));
  } else {
    SLUICE_RETURN_IF_ERROR(AsTheMaskSays(session, c, mask, in, out));
  }
  if (c.sinks != nullptr) WeighSinks(c, s.lse);
  counters.routed += routed;
  counters.work.Add(session.counters(c.layer).Since(before));
  counters.plan_s += session.plan_seconds(c.layer) - planned;
  counters.attend_s += session.attend_seconds(c.layer) - attended;
  return absl::OkStatus();
}

// Not a plain prompt or step: exactly what the mask shows, without routing.
absl::Status RoutedAttention::AsTheMaskSays(AttentionSession& session, const FlashCall& c,
                                            const MaskShape& mask, const AttentionInputs& in,
                                            const SessionOutputs& out) {
  AttentionPlan plan;
  plan.q_count = c.q.rows;
  plan.kv_len = c.k.rows;
  plan.heads = static_cast<int32_t>(c.q.heads);
  plan.kv_heads = static_cast<int32_t>(c.k.heads);
  plan.q_begin = mask.kind == MaskShape::Kind::kWindow ? mask.first : 0;
  AttentionBranch branch;
  branch.encoding = Encoding::kRuns;
  branch.scope = ListScope::kAllHeads;
  branch.tile = mask.kind == MaskShape::Kind::kRuns ? 1 : 64;
  branch.window = mask.window;
  branch.num_tiles = (c.q.rows + branch.tile - 1) / branch.tile;
  std::vector<PlanEntry> entries;
  std::vector<int64_t> begin;
  std::vector<uint32_t> count;
  const auto add = [&](int64_t lo, int64_t hi, MaskClass kind) {
    entries.push_back(
        {.start = static_cast<uint32_t>(lo), .len = static_cast<uint32_t>(hi - lo), .mask = kind});
  };
  for (int64_t t = 0; t < branch.num_tiles; ++t) {
    begin.push_back(std::ssize(entries));
    if (mask.kind == MaskShape::Kind::kAll) {
      add(0, c.k.rows, MaskClass::kNone);
    } else if (mask.kind == MaskShape::Kind::kWindow) {
      const int64_t first = mask.first + t * branch.tile;
      const int64_t last = std::min(mask.first + c.q.rows, first + branch.tile);
      const int64_t lo = std::max<int64_t>(0, first - mask.window + 1);
      add(lo, std::min(c.k.rows, last), MaskClass::kLowerBound);
    } else {
      const uint16_t* row = c.mask + t * c.mask_stride;
      for (int64_t k = 0; k < c.k.rows; ++k) {
        if (row[k] == kHidden) continue;
        int64_t end = k;
        while (end < c.k.rows && row[end] != kHidden) ++end;
        add(k, end, MaskClass::kNone);
        k = end;
      }
    }
    count.push_back(static_cast<uint32_t>(std::ssize(entries) - begin.back()));
  }
  branch.rows = {begin, count};
  branch.entries = entries;
  plan.branches = absl::MakeConstSpan(&branch, 1);
  return session.Attend(c.layer, plan, in, out);
}

std::string RoutedAttention::CountersJson() const {
  std::string out = absl::StrCat("{\"prefill\": \"", config_.prefill, "\", \"decode\": \"",
                                 config_.decode, "\", \"layers\": [");
  for (const auto& [layer, c] : counters_)
    absl::StrAppendFormat(
        &out,
        "%s\n {\"layer\": %d, \"calls\": %d, \"routed\": %d, \"exact_pairs\": %d, "
        "\"causal_pairs\": %d, "
        "\"density\": %.6f, \"kv_bytes\": %d, \"macs\": %d, \"plan_s\": %.6f, \"attend_s\": %.6f}",
        layer == counters_.begin()->first ? "" : ",", layer, c.calls, c.routed, c.work.exact_pairs,
        c.work.causal_pairs, c.work.density(), c.work.kv_bytes, c.work.macs, c.plan_s, c.attend_s);
  return out + "\n]}\n";
}
}  // namespace ggml
SLUICE_END_NAMESPACE
