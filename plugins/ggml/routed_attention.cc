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
constexpr int64_t kMostSlots = 16;
constexpr int64_t kSlots = int64_t{1}
                           << 32;  // sequences of slots are counted from here, streams from 0
// Keys that lie apart are copied for as many queries; for fewer that costs more than attending to
// all of them.
constexpr int64_t kGatherRows = 32;
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
  // What sessions read of keys, by session, layer and sequence.
  std::map<std::tuple<const AttentionSession*, int, int64_t>, KeysBeforeRope> before_rope;
  std::vector<float> lse;
  std::vector<float> slopes;  // ALiBi's, of the largest bias that was asked for last
  float slopes_bias = 0;
};

RoutedAttention::RoutedAttention(const Config& config) : config_(config) {}
RoutedAttention::~RoutedAttention() = default;
absl::StatusOr<std::unique_ptr<RoutedAttention>> RoutedAttention::Create(
    const Config& config, std::unique_ptr<Executor> executor) {
  std::unique_ptr<RoutedAttention> r(new RoutedAttention(config));
  r->executor_ =
      executor != nullptr ? std::move(executor) : MakeTbbExecutor(static_cast<int>(config.threads));
  return r;
}
void RoutedAttention::WorkersChanged() {
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
    o.layers_known = false;
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

// Caches are padded: keys after the last query are not there.
namespace {
void TrimPadding(const MaskShape& mask, FlashCall& c) {
  if (mask.kind == MaskShape::Kind::kCausal) c.k.rows = c.v.rows = mask.first + c.q.rows;
}
}  // namespace

absl::Status RoutedAttention::Run(const FlashCall& call) {
  FlashCall c = call;
  if (c.q.rows <= 0 || c.k.rows <= 0 || c.q.heads <= 0 || c.k.heads <= 0 ||
      c.q.heads % c.k.heads != 0 || c.q.dim != c.k.dim || c.v.rows != c.k.rows ||
      c.v.heads != c.k.heads || c.out.dim != c.v.dim)
    return absl::InvalidArgumentError(absl::StrCat(
        "flash attention of q [", c.q.rows, ", ", c.q.heads, ", ", c.q.dim, "], k [", c.k.rows,
        ", ", c.k.heads, ", ", c.k.dim, "], v [", c.v.rows, ", ", c.v.heads, ", ", c.v.dim, "]"));
  if (c.layer >= kMostLayers)
    return absl::OutOfRangeError(absl::StrCat("layer ", c.layer, ", at most ", kMostLayers - 1));
  LayerCounters& counters = counters_[c.layer];
  ++counters.calls;
  const Seen& seen = LookAtMask(c);
  const Part& first = *seen.parts[0];
  if (seen.part_count == 1 && first.sequence == nullptr) TrimPadding(first.shape, c);
  SLUICE_ASSIGN_OR_RETURN(Shape* const shape, ShapeOf(c));
  bool routed = false;
  for (size_t i = 0; i < seen.part_count; ++i) {
    SLUICE_ASSIGN_OR_RETURN(const bool by_router, RunPart(*shape, c, *seen.parts[i]));
    routed = routed || by_router;
  }
  counters.routed += routed;
  return absl::OkStatus();
}

// Whether the configured router planned it.
absl::StatusOr<bool> RoutedAttention::RunPart(Shape& s, const FlashCall& call, const Part& part) {
  FlashCall c = call;
  c.q.data = call.q.at(part.row, 0);
  c.out.data = call.out.at(part.row, 0);
  c.q.rows = c.out.rows = part.rows;
  if (c.mask != nullptr) c.mask += part.row * c.mask_stride;
  if (part.sequence != nullptr) {
    c.k = Gather(call.k, part, keys_);
    c.v = Gather(call.v, part, values_);
  } else {
    TrimPadding(part.shape, c);
  }
  const bool plain = part.shape.kind == MaskShape::Kind::kCausal;
  const AttentionSession& wanted = c.q.rows == 1 ? *s.decode : *s.prefill;
  const bool before_rope = wanted.router().Serving(c.layer, c.k.rows).traits().reads_pre_rope;
  const bool wants = plain && !part.unrouted && c.k.rows >= config_.min_keys;
  const bool unknown_rope = wants && before_rope && c.rope_base <= 0;
  const bool routed = wants && !unknown_rope;
  AttentionSession& session = !routed ? *s.dense : c.q.rows == 1 ? *s.decode : *s.prefill;
  AttentionInputs in;
  in.q = c.q;
  in.k = c.k;
  in.v = c.v;
  in.q_begin = part.shape.first;
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
    const int64_t id = part.slot >= 0 ? kSlots + part.slot : c.stream;
    // The host does not say when it clears or changes its cache.
    session.Unknown(c.layer, id);
    if (routed && before_rope) SLUICE_RETURN_IF_ERROR(GiveBeforeRope(s, session, c, id, in));
    SLUICE_RETURN_IF_ERROR(session.Run(c.layer, in, out, id));
  } else {
    SLUICE_RETURN_IF_ERROR(AsTheMaskSays(s, c, part, in, out));
  }
  if (c.sinks != nullptr) WeighSinks(c, s.lse);
  LayerCounters& counters = counters_[c.layer];
  counters.work.Add(session.counters(c.layer).Since(before));
  counters.plan_s += session.plan_seconds(c.layer) - planned;
  counters.attend_s += session.attend_seconds(c.layer) - attended;
  counters.no_rope += unknown_rope;
  return routed;
}

absl::Status RoutedAttention::GiveBeforeRope(Shape& s, AttentionSession& session,
                                             const FlashCall& c, int64_t sequence,
                                             AttentionInputs& in) {
  back_.Reserve(c.k.rows, c.k.dim, c.rope_base);
  SLUICE_ASSIGN_OR_RETURN(const int64_t stay, session.KeysThatStay(c.layer, in, sequence));
  KeysBeforeRope& keys = s.before_rope[{&session, c.layer, sequence}];
  in.k_pre = keys.Update(c.k, stay, back_, *executor_);
  in.q_pre = QueriesBeforeRope(c.q, in.q_begin, back_, q_pre_);
  in.rope_base = c.rope_base;
  return absl::OkStatus();
}

// The part's cells one after the other: where they lie, or copied.
KvView RoutedAttention::Gather(const KvView& from, const Part& part,
                               std::vector<std::byte>& to) const {
  const std::vector<uint32_t>& cells = part.sequence->cells;
  KvView view = from;
  view.rows = std::ssize(cells);
  if (part.sequence->contiguous()) {
    view.data = from.at(cells.front(), 0);
    return view;
  }
  const int64_t head_bytes = DTypeBytes(from.dtype, from.dim);
  const int64_t row_bytes = head_bytes * from.heads;
  to.resize(static_cast<size_t>(view.rows * row_bytes));
  view.data = to.data();
  view.row_stride = from.heads * from.dim;
  view.head_stride = from.dim;
  constexpr int64_t kGrain = 256;
  executor_->ParallelFor(view.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t h = 0; h < from.heads; ++h)
        std::memcpy(&to[r * row_bytes + h * head_bytes], from.at(cells[r], h), head_bytes);
    }
  });
  return view;
}

// Once a pass and mask, not once a layer. The host writes other masks where these were in the next
// pass; calls without a layer's name tell nothing of passes.
const RoutedAttention::Seen& RoutedAttention::LookAtMask(const FlashCall& c) {
  const bool rises = c.layer > last_layer_ || (c.layer == last_layer_ && c.stream > last_stream_);
  if (c.layer < 0 || !rises) {
    seen_count_ = 0;
    ++pass_;
  }
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
  CutIntoParts(c, s);
  return s;
}

RoutedAttention::Part& RoutedAttention::NewPart(Seen& seen) {
  if (seen.part_count == seen.parts.size()) seen.parts.push_back(std::make_unique<Part>());
  Part& part = *seen.parts[seen.part_count];
  ++seen.part_count;
  part.sequence = nullptr;
  part.slot = -1;
  part.unrouted = false;
  return part;
}

// One part, or where a router has something to say of its sequences, a part for each of those and
// for what lies between them.
void RoutedAttention::CutIntoParts(const FlashCall& c, Seen& seen) {
  seen.part_count = 0;
  const auto make = [&](Part& part, const MaskShape& shape, int64_t row, int64_t rows) {
    part.row = row;
    part.rows = rows;
    part.shape = shape;
    const uint16_t* mask = c.mask != nullptr ? c.mask + row * c.mask_stride : nullptr;
    part.plan.Make(shape, mask, c.mask_stride, rows, c.k.rows, seen.group);
  };
  const auto make_unrouted = [&](int64_t row, int64_t rows) {
    if (rows == 0) return;
    Part& part = NewPart(seen);
    part.unrouted = true;
    const uint16_t* mask = c.mask + row * c.mask_stride;
    make(part, ReadMask(mask, c.mask_stride, rows, c.k.rows), row, rows);
  };
  const MaskShape all = ReadMask(c.mask, c.mask_stride, c.q.rows, c.k.rows);
  const bool cut = all.kind == MaskShape::Kind::kRuns && (Routes(1) || Routes(2));
  if (!cut) return make(NewPart(seen), all, 0, c.q.rows);

  const int64_t count = ReadSequences(c.mask, c.mask_stride, c.q.rows, c.k.rows, seen.sequences);
  int64_t done = 0;
  for (int64_t i = 0; i < count; ++i) {
    const MaskSequence& s = seen.sequences[i];
    const auto keys = static_cast<int64_t>(s.cells.size());
    if (keys < std::max<int64_t>(1, config_.min_keys) || !Routes(s.rows)) continue;
    if (!s.contiguous() && s.rows < kGatherRows) continue;
    const int64_t slot = SlotOf(c, s);
    if (slot < 0) continue;
    make_unrouted(done, s.row - done);
    Part& part = NewPart(seen);
    make(part, {.kind = MaskShape::Kind::kCausal, .first = keys - s.rows}, s.row, s.rows);
    part.sequence = &s;
    part.slot = slot;
    done = s.row + s.rows;
  }
  if (done == 0) return make(NewPart(seen), all, 0, c.q.rows);
  make_unrouted(done, c.q.rows - done);
}

// A sequence goes on where its cells begin with those of a slot, or the other way round (tokens
// were taken back). Layers with another mask find the same slot; parts of one mask have slots of
// their own, and -1 where there are too many of them.
int64_t RoutedAttention::SlotOf(const FlashCall& c, const MaskSequence& s) {
  int64_t best = -1, longest = 0, oldest = -1;
  for (int64_t i = 0; i < std::ssize(slots_); ++i) {
    const Slot& slot = slots_[i];
    if (slot.mask == masks_read_) continue;
    if (slot.pass < pass_ && (oldest < 0 || slot.pass < slots_[oldest].pass)) oldest = i;
    const size_t common = std::min(slot.cells.size(), s.cells.size());
    const bool same = slot.stream == c.stream &&
                      std::equal(s.cells.begin(), s.cells.begin() + common, slot.cells.begin());
    if (!same || static_cast<int64_t>(common) <= longest) continue;
    longest = static_cast<int64_t>(common);
    best = i;
  }
  if (best < 0 && std::ssize(slots_) < kMostSlots) {
    best = std::ssize(slots_);
    slots_.emplace_back();
  }
  if (best < 0) best = oldest;
  if (best < 0) return -1;
  slots_[best].stream = c.stream;
  slots_[best].cells = s.cells;
  slots_[best].pass = pass_;
  slots_[best].mask = masks_read_;
  return best;
}

// Not a plain prompt or step: exactly what the mask shows, without routing.
absl::Status RoutedAttention::AsTheMaskSays(Shape& shape, const FlashCall& c, const Part& part,
                                            const AttentionInputs& in, SessionOutputs out) const {
  AttentionPlan plan;
  plan.q_count = c.q.rows;
  plan.kv_len = c.k.rows;
  plan.heads = static_cast<int32_t>(c.q.heads);
  plan.kv_heads = static_cast<int32_t>(c.k.heads);
  plan.q_begin = part.shape.kind == MaskShape::Kind::kWindow ? part.shape.first : 0;
  const AttentionBranch branch = part.plan.branch();
  plan.branches = absl::MakeConstSpan(&branch, 1);
  if (part.plan.wants_mask()) {
    out.mask = {c.mask, c.mask_stride, nullptr, part.plan.zero()};
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
  no_rope += more.no_rope;
  work.Add(more.work);
  plan_s += more.plan_s;
  attend_s += more.attend_s;
}

std::string CountersJson(const Config& config, const Counters& layers, const Tally& declined,
                         const Tally& parallel) {
  std::string out = absl::StrCat("{\"prefill\": \"", config.prefill, "\", \"decode\": \"",
                                 config.decode, "\", \"layers\": [");
  for (const auto& [layer, c] : layers) {
    absl::StrAppendFormat(
        &out,
        "%s\n {\"layer\": %d, \"calls\": %d, \"routed\": %d, \"no_rope\": %d, \"exact_pairs\": %d, "
        "\"causal_pairs\": %d, "
        "\"density\": %.6f, \"kv_bytes\": %d, \"macs\": %d, \"plan_s\": %.6f, \"attend_s\": %.6f}",
        layer == layers.begin()->first ? "" : ",", layer, c.calls, c.routed, c.no_rope,
        c.work.exact_pairs, c.work.causal_pairs, c.work.density(), c.work.kv_bytes, c.work.macs,
        c.plan_s, c.attend_s);
  }
  out += "\n]";
  for (const auto& [name, tally] : {std::pair("declined", &declined), {"parallel", &parallel}}) {
    absl::StrAppend(&out, ", \"", name, "\": {");
    for (const auto& [what, times] : *tally)
      absl::StrAppend(&out, what == tally->begin()->first ? "" : ", ", "\"", what, "\": ", times);
    out += "}";
  }
  return out + "}\n";
}
}  // namespace ggml
SLUICE_END_NAMESPACE
