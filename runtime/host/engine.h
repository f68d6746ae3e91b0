#ifndef SLUICE_RUNTIME_HOST_ENGINE_H_
#define SLUICE_RUNTIME_HOST_ENGINE_H_
// A small Llama host written on top of Sluice the way a user would: the engine owns weights, KV
// cache and threads; routers, all made by name, decide what it need not compute.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sluice/api/registry.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/attend/metrics.h"
#include "sluice/runtime/host/expert_routing.h"
#include "sluice/runtime/host/layer_math.h"
#include "sluice/runtime/host/layer_routing.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/host/sparse_weights.h"
#include "sluice/runtime/host/token_pruning.h"
#include "sluice/runtime/host/token_routing.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// What a layer's matrices are multiplied with: the normalised state (q, k and v), attention's
// output (the output projection), the normalised state (gate and up), the activations (down).
enum class MatrixInput : uint8_t { kAttention, kAttentionOut, kFfn, kFfnDown };
inline constexpr int64_t kMatrixInputs = 4;

struct EngineOptions {
  std::string router =
      "dense";  // an attention router's spec, or a composition (policies/compose/attention.h)
  LayerRouting layers;
  TokenRouting tokens;
  TokenPruning pruning;
  ExpertRouting experts;  // of a Mixture of Experts, or instead of a dense FFN
  DType cache = DType::kF32;
  int64_t chunk = 512;       // prompt tokens per pass
  int64_t max_tokens = 0;    // 0: the model's context
  int64_t dense_layers = 0;  // first layers that stay dense
  int threads = 0;           // 0: one per CPU
  // How matrices that a pruner has thinned are held, beside the plain ones: SparseWeights::Create.
  std::string sparse_weights = "off";
  // Sees what every residual unit (0: attention, 1: FFN) was given (normalised) and added, both [n,
  // width], packed.
  std::function<void(int64_t layer, int64_t unit, int64_t n, const float* h, const float* u)>
      observe;
  // Sees what the matrices of every layer are multiplied with, packed rows [n, the matrix's width].
  // Units that route their tokens, to experts too, are not seen.
  std::function<void(int64_t layer, MatrixInput input, int64_t n, const float* x)> on_input;
  // Sees every plan that was attended to and how long that took; not in the timing.
  std::function<void(int64_t layer, const AttentionPlan& plan, double seconds)> on_plan;
  int64_t quality_stride =
      0;  // > 0: measure density and mass recall of every so many queries (slow)
  bool quality_errors = false;  // its errors against dense attention too (twice as slow)
};

// Without the time that quality measuring takes.
struct Timing {
  double total_s = 0;
  double plan_s = 0;
  double attend_s = 0;
  double route_s = 0;
};
struct TokenCounters {
  int64_t executed = 0;  // rows of a unit
  int64_t approximated = 0;
  double sparsity() const {
    const int64_t all = executed + approximated;
    return all > 0 ? static_cast<double>(approximated) / static_cast<double>(all) : 0;
  }
};

class Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const Model& model,
                                                        const EngineOptions& options);
  ~Engine();
  // Forgets the sequence.
  void Reset();
  int64_t length() const { return length_; }
  // Appends tokens. `visit` (optional) gets the logits [vocab] that follow every token at position
  // >= `from`.
  absl::Status Feed(const std::vector<int32_t>& tokens, int64_t from,
                    const std::function<void(int64_t position, const float* logits)>& visit = {},
                    const std::function<void(int64_t done)>& progress = {});

  // One layer by itself, on the residual stream x [n, width] of a sequence from its beginning, in
  // place. Forgets the sequence. Reads the model's weights as they are now, but those that were
  // packed when the engine was made: how a calibration goes through a model layer by layer.
  // InvalidArgument for another layer or length, or where layers or
  // tokens of a prompt are left out.
  absl::Status RunLayerAlone(int64_t layer, int64_t n, float* x);

  const Model& model() const { return model_; }
  const Timing& timing() const { return timing_; }
  const AttentionCounters& counters() const { return counters_; }
  const AttentionCounters& layer_counters(int64_t layer) const { return layer_counters_[layer]; }
  // Planning and attending of one layer.
  double attention_seconds(int64_t layer) const { return layer_attention_s_[layer]; }
  const LinearCounters& linear() const;
  const SparseWeights::Held& sparse_weights() const;
  const PlanQuality& quality() const { return quality_; }
  int64_t cache_rows(int64_t layer) const;  // keys kept now
  // They and their values, [cache_rows, kv_heads, head_dim]; until the next Feed or Reset.
  KvView keys(int64_t layer) const;
  KvView values(int64_t layer) const;

  // Layer routing: what was decided for this sequence, undecided before the prefill, and by which
  // score of the router.
  const std::vector<LayerMode>& modes() const { return modes_; }
  float layer_score(int64_t layer) const;
  int64_t router_calls() const;
  // Token routing; unit 0: attention, 1: FFN.
  const TokenCounters& token_counters(int64_t layer, int64_t unit) const {
    return token_counters_[2 * layer + unit];
  }
  // Of a Mixture of Experts: tokens that an expert computed.
  int64_t expert_rows(int64_t layer, int64_t expert) const;
  // Token pruning: tokens that a block computed of those it was given; equal without.
  bool prunes() const { return options_.pruning.on(); }
  // The first tokens fed decide for the whole sequence.
  bool decides_by_prompt() const { return prunes() || options_.layers.on(); }
  const TokenCounters& block_counters(int64_t layer) const { return block_counters_[layer]; }

 private:
  struct Impl;
  struct Pass;
  Engine(const Model& model, const EngineOptions& options);
  void MakeBuffers();
  HeadsView<const float> Attended(const AttentionInputs& in) const;
  void See(int64_t layer, const AttentionPlan& plan, const AttentionInputs& in, double seconds);
  absl::Status CheckTokens(const std::vector<int32_t>& tokens) const;
  void Embed(const std::vector<int32_t>& tokens);
  void VisitLogits(int64_t n, int64_t from,
                   const std::function<void(int64_t, const float*)>& visit);

  absl::Status Decide(int64_t layer, int64_t prompt);
  absl::Status Choose(int64_t layer, int64_t n);
  absl::Status RunPruned(int64_t layer, int64_t n);
  absl::Status RunPrunedFfn(int64_t layer, int64_t n);
  absl::Status RunChosen(int64_t n, const std::function<absl::Status(float* x)>& run);
  absl::Status RunLayer(const Pass& pass);
  absl::Status DecideEarly(const Pass& pass);
  absl::Status RunAttention(const Pass& pass);
  absl::Status RunFfn(const Pass& pass);
  absl::Status Ffn(int64_t layer, int64_t begin, int64_t n, const float* h, float* x);
  absl::StatusOr<bool> RouteTokens(const Pass& pass, int64_t unit);
  absl::Status RunTokens(const Pass& pass, int64_t unit, const TokenRouter::Execute& execute);
  absl::Status Attend(const Pass& pass, const float* q, int64_t q_stride, int64_t queries,
                      absl::Span<const int32_t> positions);

  void Norm(const std::vector<float>& weight, const float* x, int64_t n);
  void Rotate(const Pass& p, int64_t place, int64_t heads, float* x) const;

  const Model& model_;
  EngineOptions options_;
  std::unique_ptr<Impl> impl_;
  int64_t length_ = 0;
  Timing timing_;
  AttentionCounters counters_;
  std::vector<AttentionCounters> layer_counters_;
  std::vector<double> layer_attention_s_;
  PlanQuality quality_;
  std::vector<LayerMode> modes_;
  std::vector<TokenCounters> token_counters_, block_counters_;
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_ENGINE_H_
