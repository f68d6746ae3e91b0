#include "sluice/plugins/ggml/routed_attention.h"

#include <algorithm>
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
constexpr int kMostLayers = 1024;
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
    } else if (key == "early_steps") {
      status = integer(0, 1, c.early_steps);
    } else if (key == "threads") {
      status = integer(0, 1024, c.threads);
    } else if (key == "counters") {
      c.counters = std::string(value);
    } else {
      return bad("unknown key '", key,
                 "'; known: attention, prefill, decode, min_keys, decode_min_keys, "
                 "early_steps, threads, counters");
    }
    SLUICE_RETURN_IF_ERROR(status);
  }
  return c;
}

// Sessions for prompts, for steps and for what stays dense.
struct RoutedAttention::Shape {
  int64_t max_queries = 0;
  int64_t max_kv = 0;
  std::unique_ptr<AttentionSession> prefill, decode, dense;
  std::vector<float> lse;
  std::vector<float> slopes;  // ALiBi's, of the largest bias that was asked for last
  float slopes_bias = 0;
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
  std::unique_ptr<Shape>& slot = shapes_[ShapeKey{c.q.heads, c.k.heads, c.q.dim, c.v.dim, cap}];
  if (slot != nullptr && c.q.rows <= slot->max_queries && c.k.rows <= slot->max_kv)
    return slot.get();
  // Grows by doubling; what routers knew of the keys is found again.
  auto s = std::make_unique<Shape>();
  s->max_queries = std::max<int64_t>(slot != nullptr ? slot->max_queries : 1, c.q.rows);
  s->max_kv = slot != nullptr ? slot->max_kv : 4096;
  while (s->max_kv < c.k.rows) s->max_kv *= 2;
  const auto make = [&](const std::string& policy, int64_t queries, bool masks,
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
    o.attend.logit_mask = masks;
    o.attend.few_rows = masks;
    o.fingerprints = true;
    SLUICE_ASSIGN_OR_RETURN(session, AttentionSession::Create(o));
    return absl::OkStatus();
  };
  SLUICE_RETURN_IF_ERROR(make(config_.prefill, s->max_queries, false, s->prefill));
  SLUICE_RETURN_IF_ERROR(make(config_.decode, 1, false, s->decode));
  SLUICE_RETURN_IF_ERROR(make("dense", s->max_queries, true, s->dense));
  slot = std::move(s);
  return slot.get();
}

bool TakesStep(const Config& c, int64_t keys, int64_t kv_bytes) {
  return c.decode_min_keys >= 0 ? keys >= c.decode_min_keys : kv_bytes >= int64_t{2} << 20;
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
  const Seen& seen = LookAtMask(c);
  const MaskShape& mask = seen.shape;
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
    SLUICE_RETURN_IF_ERROR(AsTheMaskSays(s, c, seen, in, out));
  }
  if (c.sinks != nullptr) WeighSinks(c, s.lse);
  counters.routed += routed;
  counters.work.Add(session.counters(c.layer).Since(before));
  counters.plan_s += session.plan_seconds(c.layer) - planned;
  counters.attend_s += session.attend_seconds(c.layer) - attended;
  return absl::OkStatus();
}

// Once a pass and mask, not once a layer. The host writes other masks where these were in the next
// pass; calls without a layer's name tell nothing of passes.
const RoutedAttention::Seen& RoutedAttention::LookAtMask(const FlashCall& c) {
  const bool rises = c.layer > last_layer_ || (c.layer == last_layer_ && c.stream > last_stream_);
  if (c.layer < 0 || !rises) seen_count_ = 0;
  last_layer_ = c.layer;
  last_stream_ = c.stream;
  const int64_t group = c.q.heads / c.k.heads;
  for (size_t i = 0; i < seen_count_; ++i) {
    const Seen& s = *seen_[i];
    if (s.mask == c.mask && s.n_q == c.q.rows && s.n_kv == c.k.rows && s.stream == c.stream &&
        s.group == group)
      return s;
  }
  ++masks_read_;
  if (seen_count_ == seen_.size()) seen_.push_back(std::make_unique<Seen>());
  Seen& s = *seen_[seen_count_];
  ++seen_count_;
  s.mask = c.mask;
  s.n_q = c.q.rows;
  s.n_kv = c.k.rows;
  s.stream = c.stream;
  s.group = group;
  s.shape = ReadMask(c.mask, c.mask_stride, c.q.rows, c.k.rows);
  s.plan.Make(s.shape, c.mask, c.mask_stride, c.q.rows, c.k.rows, group);
  return s;
}

// Not a plain prompt or step: exactly what the mask shows, without routing.
absl::Status RoutedAttention::AsTheMaskSays(Shape& shape, const FlashCall& c, const Seen& seen,
                                            const AttentionInputs& in, SessionOutputs out) const {
  AttentionPlan plan;
  plan.q_count = c.q.rows;
  plan.kv_len = c.k.rows;
  plan.heads = static_cast<int32_t>(c.q.heads);
  plan.kv_heads = static_cast<int32_t>(c.k.heads);
  plan.q_begin = seen.shape.kind == MaskShape::Kind::kWindow ? seen.shape.first : 0;
  const AttentionBranch branch = seen.plan.branch();
  plan.branches = absl::MakeConstSpan(&branch, 1);
  if (seen.plan.wants_mask()) {
    out.mask = {c.mask, c.mask_stride, nullptr, seen.plan.zero()};
    if (c.max_bias > 0) {
      if (shape.slopes_bias != c.max_bias) shape.slopes = AlibiSlopes(c.q.heads, c.max_bias);
      shape.slopes_bias = c.max_bias;
      out.mask.slopes = shape.slopes.data();
    }
  }
  return shape.dense->Attend(c.layer, plan, in, out);
}

void LayerCounters::Add(const LayerCounters& more) {
  calls += more.calls;
  routed += more.routed;
  work.Add(more.work);
  plan_s += more.plan_s;
  attend_s += more.attend_s;
}

std::string CountersJson(const Config& config, const Counters& layers,
                         const std::map<std::string, int64_t>& declined) {
  std::string out = absl::StrCat("{\"prefill\": \"", config.prefill, "\", \"decode\": \"",
                                 config.decode, "\", \"layers\": [");
  for (const auto& [layer, c] : layers) {
    absl::StrAppendFormat(
        &out,
        "%s\n {\"layer\": %d, \"calls\": %d, \"routed\": %d, \"exact_pairs\": %d, "
        "\"causal_pairs\": %d, "
        "\"density\": %.6f, \"kv_bytes\": %d, \"macs\": %d, \"plan_s\": %.6f, \"attend_s\": %.6f}",
        layer == layers.begin()->first ? "" : ",", layer, c.calls, c.routed, c.work.exact_pairs,
        c.work.causal_pairs, c.work.density(), c.work.kv_bytes, c.work.macs, c.plan_s, c.attend_s);
  }
  out += "\n], \"declined\": {";
  for (const auto& [why, asked] : declined) {
    absl::StrAppend(&out, why == declined.begin()->first ? "" : ", ", "\"", why, "\": ", asked);
  }
  return out + "}}\n";
}
}  // namespace ggml
SLUICE_END_NAMESPACE
