#ifndef SLUICE_RUNTIME_HOST_ENGINE_H_
#define SLUICE_RUNTIME_HOST_ENGINE_H_
// A small Llama host written on top of Sluice the way a user would: the engine owns weights, KV
// cache and threads; a router plans attention per layer and chunk, Sluice's executor runs the plan.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sluice/api/registry.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/attend/metrics.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// Full or sparse attention of a layer, as Flux Attention numbers them.
enum class LayerMode : uint8_t { kSparse = 0, kFull = 1, kUndecided = 255 };
// Layer routing: every layer of a prompt runs `router` (full) or `sparse`, chosen once at prefill
// by a trained router.
struct LayerRouting {
  const WeightSource* weights = nullptr;  // trained layer routers; must outlive Create only
  std::vector<LayerMode> fixed;           // or these modes, one a layer
  std::string sparse = "sink_window:sink=64,window=256";         // prefill of a sparse layer
  std::string sparse_decode = "sink_window:sink=64,window=256";  // and its decode: sink_window only
  bool evict = false;  // sparse layers keep only what their decode can see
  bool on() const { return weights != nullptr || !fixed.empty(); }
};
// Token routing: per token, attention and FFN of every layer are executed or approximated by a
// forecaster (Informed Routing). Keys and values are computed for every token. Attention routers
// must take scattered queries.
struct TokenRouting {
  enum class Gate : uint8_t { kOff, kLearned, kExecute, kApproximate, kRandom };
  Gate gate = Gate::kOff;
  const WeightSource* weights = nullptr;  // must outlive Create only
  double offset = 0;                      // kLearned: added to every logit of executing
  double rate = 0;                        // kRandom: share approximated
  std::vector<double> rates;              // kRandom: or one a unit, [layers * 2]
  uint64_t seed = 1;
  bool pin_first = true;  // the first token, the attention sink, always executes
  bool mask_approximated =
      false;  // later tokens do not see keys of tokens whose attention was approximated
};
// Which tokens of a prompt a block computes at all: FTP (pruners/token/ftp). The first block is
// dense and fills the score table; the caches of the others hold only the tokens they computed, at
// their absolute positions.
struct TokenPruning {
  enum class By : uint8_t { kOff, kLearned, kStatic, kRandom };
  By by = By::kOff;
  const WeightSource* weights = nullptr;  // kLearned; must outlive Create only
  std::vector<double> sparsity;           // of every block
  bool topk = false;  // kLearned: exactly the schedule, not what the router says
  bool causal =
      false;  // scores by each token's own query, ranks among earlier tokens: for teacher forcing
  // Single tokens after the prompt skip the blocks with sparsity above this; 1: none. kLearned: if
  // the router agrees.
  double decode = 1;
  uint64_t seed = 1;
  bool on() const { return by != By::kOff; }
};
struct EngineOptions {
  std::string router =
      "dense";  // an attention router's spec, or a composition (policies/compose/attention.h)
  LayerRouting layers;
  TokenRouting tokens;
  TokenPruning pruning;
  DType cache = DType::kF32;
  int64_t chunk = 512;       // prompt tokens per pass
  int64_t max_tokens = 0;    // 0: the model's context
  int64_t dense_layers = 0;  // first layers that stay dense
  int threads = 0;           // 0: one per CPU
  // Sees what every residual unit (0: attention, 1: FFN) was given (normalised) and added, both [n,
  // width], packed.
  std::function<void(int64_t layer, int64_t unit, int64_t n, const float* h, const float* u)>
      observe;
  // Sees every plan that was attended to and how long that took; not in the timing.
  std::function<void(int64_t layer, const AttentionPlan& plan, double seconds)> on_plan;
  int64_t quality_stride =
      0;  // > 0: measure density and mass recall of every so many queries (slow)
};
struct Timing {
  double total_s = 0, plan_s = 0, attend_s = 0,
         route_s = 0;  // without the time that quality measuring takes
};

// Measured in the matrix products of the layers (embedding and output head not counted).
struct LinearCounters {
  int64_t macs = 0, weight_bytes = 0;
};
struct TokenCounters {
  int64_t executed = 0, approximated = 0;  // rows of a unit
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
  const Timing& timing() const { return timing_; }
  const AttentionCounters& counters() const { return counters_; }
  const PlanQuality& quality() const { return quality_; }
  const Model& model() const { return model_; }
  bool prunes() const { return options_.pruning.on(); }
  // What was decided for this sequence, and the logits (sparse, full) of every layer; undecided
  // before the prefill.
  const std::vector<LayerMode>& modes() const { return modes_; }
  const std::vector<float>& layer_logits() const { return layer_logits_; }
  const AttentionCounters& layer_counters(int64_t layer) const { return layer_counters_[layer]; }
  int64_t router_calls() const { return router_calls_; }
  const LinearCounters& linear() const { return linear_; }
  // unit 0: attention, 1: FFN.
  const TokenCounters& token_counters(int64_t layer, int64_t unit) const {
    return token_counters_[2 * layer + unit];
  }
  int64_t cache_rows(int64_t layer) const;  // keys kept now
  // Tokens that a block computed of those it was given; equal without pruning.
  const TokenCounters& block_counters(int64_t layer) const { return block_counters_[layer]; }

 private:
  struct Impl;
  Engine(const Model& model, const EngineOptions& options);
  absl::Status MakeSessions();
  void See(int64_t layer, const AttentionPlan& plan, const AttentionInputs& in, double seconds);
  absl::Status PrepareLayerRouting();
  absl::Status Decide(int64_t layer, int64_t prompt);
  absl::Status PrepareTokenRouting();
  absl::Status PreparePruning();
  absl::Status ChooseTokens(int64_t layer, int64_t n);
  absl::Status RunPruned(int64_t layer, int64_t n);
  void ScoreTokens(int64_t layer);
  absl::Status RunLayer(int64_t layer, float* x, int64_t begin, int64_t n, int64_t end);
  absl::StatusOr<bool> RouteTokens(int64_t layer, int64_t unit, int64_t begin, int64_t n);
  template <class Execute>
  absl::Status RunTokens(int64_t layer, int64_t unit, float* x, int64_t n, const Execute& execute);
  absl::Status RunAttention(int64_t layer, float* x, int64_t begin, int64_t n, int64_t end);
  absl::Status RunFfn(int64_t layer, float* x, int64_t begin, int64_t n);
  void Norm(const std::vector<float>& weight, const float* x, int64_t n);
  void AppendKeys(int64_t layer, const float* k, const float* v, int64_t stride, int64_t begin,
                  int64_t n);
  void Rotate(float* x, int64_t heads, int64_t position) const;
  absl::Status Attention(int64_t layer, const float* q, int64_t q_stride, int64_t queries,
                         absl::Span<const int32_t> positions, int64_t begin, int64_t n,
                         int64_t end);
  void Ffn(int64_t layer, const float* h, int64_t n, float* y, bool accumulate);
  void MatMul(const float* x, const float* w, int64_t n, int64_t in, int64_t out, float* y,
              bool accumulate = false);
  void Evict(int64_t layer);
  size_t CacheRowBytes() const;

  const Model& model_;
  EngineOptions options_;
  std::unique_ptr<Impl> impl_;
  int64_t length_ = 0;
  Timing timing_;
  AttentionCounters counters_;
  PlanQuality quality_;
  std::vector<LayerMode> modes_;
  std::vector<float> layer_logits_;
  std::vector<AttentionCounters> layer_counters_;
  int64_t router_calls_ = 0;
  LinearCounters linear_;
  std::vector<TokenCounters> token_counters_, block_counters_;
};

// exp of the mean negative log-likelihood of tokens 1.. given those before. Fills `nll` when not
// null.
absl::StatusOr<double> Perplexity(Engine& engine, const std::vector<int32_t>& tokens,
                                  std::vector<float>* nll = nullptr,
                                  const std::function<void(int64_t)>& progress = {});
// Share of the marked tokens that the model ranks first given everything before them. `text` limits
// perplexity. An engine that prunes gets what stands before the first answer as its prompt, and the
// rest after it: perplexity is then 0, unknown.
struct Score {
  double perplexity = 0, accuracy = 0, nll = 0;  // nll: summed over `counted` tokens
  int64_t asked = 0, right = 0, counted = 0;
};
absl::StatusOr<Score> ScoreMarked(Engine& engine, const std::vector<int32_t>& tokens,
                                  const std::vector<uint8_t>& answer,
                                  const std::vector<uint8_t>& text,
                                  const std::function<void(int64_t)>& progress = {});
struct Sampling {
  double temperature = 0;  // 0: greedy, ties to the lowest id
  int64_t top_k = 40;
  uint64_t seed = 1;
};
// Appends the prompt and generates up to `count` tokens; stops at end of text. on_token may stop it
// by returning false.
absl::StatusOr<std::vector<int32_t>> Generate(Engine& engine, const std::vector<int32_t>& prompt,
                                              int64_t count, const Sampling& sampling = {},
                                              const std::function<bool(int32_t)>& on_token = {});

// Documentation text with planted facts, as the bundled model was trained on: statements at spread
// depths, questions with their answers at the end. `separator` stands around statements and before
// questions (models learn one).
struct FactPrompt {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> answer, text;                       // marks: answer tokens; plain text
  std::vector<std::pair<std::string, std::string>> facts;  // name, code; in the order asked
};
FactPrompt PlantFacts(const Tokenizer& tokenizer, const std::vector<int32_t>& text, int64_t length,
                      int64_t count, uint64_t seed, const std::string& separator = "\n");
std::string FactQuestion(const std::string& name, const std::string& separator = "\n");
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_ENGINE_H_
