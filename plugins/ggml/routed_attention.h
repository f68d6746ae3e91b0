#ifndef SLUICE_PLUGINS_GGML_ROUTED_ATTENTION_H_
#define SLUICE_PLUGINS_GGML_ROUTED_ATTENTION_H_
// Attention as ggml's FLASH_ATTN_EXT asks for it, routed: causality is read from the mask, lists
// come from a router, the executor of runtime/attend runs them. Knows nothing of ggml's types, so
// it is tested without them.
#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/api/attention_router.h"
#include "sluice/plugins/ggml/before_rope.h"
#include "sluice/plugins/ggml/mask.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/session/attention_session.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
// A text file of lines "key = value"; '#' begins a comment. prefill and decode take a router or a
// composition (policies/compose/attention.h).
struct Config {
  std::string prefill = "dense", decode = "dense";
  int64_t min_keys = 0;  // shorter contexts stay dense
  // Single steps with fewer keys stay with the host altogether: handing one over costs something.
  // -1: with less than 2 MiB of keys and values.
  int64_t decode_min_keys = -1;
  int64_t early_steps = 0;  // 1: take steps before any prompt; the host's `-fa auto` then finds out
  int64_t threads = 0;  // of the backend's own; 0: as many as the host sets, its own if it has some
  std::string counters;  // file written at the end, JSON; "": none
};
absl::StatusOr<Config> ParseConfig(absl::string_view text);
// Is a step over so many keys, of so many bytes of keys and values, worth taking from the host?
bool TakesStep(const Config& c, int64_t keys, int64_t kv_bytes);

struct FlashCall {
  int layer = -1;  // -1: unknown
  int64_t stream = 0;
  HeadsView<const float> q;        // [n_q, heads, d]
  KvView k, v;                     // [n_kv, kv_heads, d or dv], f16 or f32
  const uint16_t* mask = nullptr;  // f16 [n_q, n_kv], added to the logits; null: all keys visible
  int64_t mask_stride = 0;         // elements a row
  float scale = 1, softcap = 0;
  // Of RoPE over interleaved pairs of the whole width, so that routers can read what was before it;
  // 0: another rotation, or an unknown one.
  float rope_base = 0;
  float max_bias = 0;  // > 0: the mask's values count by a slope a head (ALiBi)
  const float* sinks =
      nullptr;           // [heads], a logit that takes part in the sum but has no value; null: none
  HeadsView<float> out;  // [n_q, heads, dv]
};

struct LayerCounters {
  int64_t calls = 0, routed = 0;  // routed: by the configured router, not because of length or mask
  int64_t no_rope = 0;  // dense, since a router reads what was before RoPE and no base was given
  AttentionCounters work;
  double plan_s = 0, attend_s = 0;

  void Add(const LayerCounters& more);
};
using Counters = std::map<int, LayerCounters>;  // by layer
// Why operations were left to the host, and how often it asked; and other things that are counted.
using Tally = std::map<std::string, int64_t>;
std::string CountersJson(const Config& config, const Counters& layers, const Tally& declined = {},
                         const Tally& parallel = {});

// Not for concurrent use: a host computes one graph at a time.
class RoutedAttention {
 public:
  // Without an executor: threads of oneTBB, as many as the configuration says.
  static absl::StatusOr<std::unique_ptr<RoutedAttention>> Create(
      const Config& config, std::unique_ptr<Executor> executor = nullptr);
  ~RoutedAttention();
  // The executor has another number of workers than before.
  void WorkersChanged();
  absl::Status Run(const FlashCall& call);
  const Counters& counters() const { return counters_; }
  // Masks that were read since this was made; not once a layer.
  int64_t masks_read() const { return masks_read_; }
  const Config& config() const { return config_; }
  Executor& executor() { return *executor_; }

 private:
  struct Shape;  // everything that depends on heads, widths and soft-cap
  explicit RoutedAttention(const Config& config);
  // Heads, KV heads, widths of keys and values, bits of the soft-cap.
  using ShapeKey = std::array<int64_t, 5>;
  absl::StatusOr<Shape*> ShapeOf(const FlashCall& call);
  struct Seen;
  struct Part;
  absl::Status GiveBeforeRope(Shape& shape, AttentionSession& session, const FlashCall& call,
                              int64_t sequence, AttentionInputs& in);
  const Seen& LookAtMask(const FlashCall& call);
  void CutIntoParts(const FlashCall& call, Seen& seen);
  Part& NewPart(Seen& seen);
  int64_t SlotOf(const FlashCall& call, const MaskSequence& sequence);
  bool Routes(int64_t rows) const {
    return (rows == 1 ? config_.decode : config_.prefill) != "dense";
  }
  KvView Gather(const KvView& from, const Part& part, std::vector<std::byte>& to) const;
  absl::StatusOr<bool> RunPart(Shape& shape, const FlashCall& call, const Part& part);
  absl::Status AsTheMaskSays(Shape& shape, const FlashCall& call, const Part& part,
                             const AttentionInputs& in, SessionOutputs out) const;
  void WeighSinks(const FlashCall& call, const std::vector<float>& lse) const;

  Config config_;
  std::unique_ptr<Executor> executor_;
  std::map<ShapeKey, std::unique_ptr<Shape>> shapes_;
  Counters counters_;
  // Queries that run together: all of a call, or those of one sequence.
  struct Part {
    int64_t row = 0, rows = 0;
    MaskShape shape;
    MaskPlan plan;  // of what is not a plain prompt or step
    // Of a sequence among others' cells. Its state is kept under `slot`, that of others under the
    // stream.
    const MaskSequence* sequence = nullptr;
    int64_t slot = -1;
    bool unrouted = false;  // of a call that has sequences besides
  };
  // Layers of a pass share masks: one of all layers, or one of those that slide and one of the
  // rest, for every stream. A pass ends where layers and streams no longer rise.
  struct Seen {
    const void* mask = nullptr;
    int64_t n_q = 0, n_kv = 0, stream = 0, group = 0;
    std::vector<std::unique_ptr<Part>> parts;  // the first `part_count` are this mask's
    size_t part_count = 0;
    std::vector<MaskSequence> sequences;
  };
  // Sequences of unified caches, known by their cells: what a pass shows of one goes on with what
  // an earlier pass showed.
  struct Slot {
    int64_t stream = -1;
    std::vector<uint32_t> cells;
    int64_t pass = 0;  // that used it last, and the number of the mask that did
    int64_t mask = 0;
  };
  std::vector<std::unique_ptr<Seen>> seen_;  // the first `seen_count_` are of this pass
  size_t seen_count_ = 0;
  int64_t masks_read_ = 0;
  std::vector<Slot> slots_;
  int64_t pass_ = 0;
  std::vector<std::byte> keys_, values_;  // of a sequence whose cells lie apart
  kernels::RopeTable back_{kernels::RopeTable::Direction::kBack};
  std::vector<float> q_pre_;
  int last_layer_ = -1;
  int64_t last_stream_ = -1;
};
}  // namespace ggml
SLUICE_END_NAMESPACE
#endif  // SLUICE_PLUGINS_GGML_ROUTED_ATTENTION_H_
