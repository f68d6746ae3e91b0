#include "sluice/runtime/lab/prune/prune_weights.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/pruners/common/chain.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/lab/prune/input_stats.h"
#include "sluice/runtime/lab/prune/windows.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
using host::MatrixInput;

// A tensor of the file and where the host has it.
struct Matrix {
  std::string name;
  MatrixInput input;
  int64_t rows = 0, cols = 0;
  float* weights = nullptr;  // [rows, cols]
  bool ffn() const { return input == MatrixInput::kFfn || input == MatrixInput::kFfnDown; }
};
std::vector<Matrix> MatricesOf(host::Model& model, int64_t layer) {
  const host::ModelShape& s = model.shape;
  host::Layer& l = model.layers[static_cast<size_t>(layer)];
  const int64_t q = s.heads * s.head_dim;
  const int64_t kv = s.kv_heads * s.head_dim;
  float* qkv = l.qkv.data();
  float* gate_up = l.gate_up.data();
  std::vector<Matrix> all = {
      {"attn_q", MatrixInput::kAttention, q, s.width, qkv},
      {"attn_k", MatrixInput::kAttention, kv, s.width, qkv + q * s.width},
      {"attn_v", MatrixInput::kAttention, kv, s.width, qkv + (q + kv) * s.width},
      {"attn_output", MatrixInput::kAttentionOut, s.width, q, l.attn_out.data()},
      {"ffn_gate", MatrixInput::kFfn, s.ffn, s.width, gate_up},
      {"ffn_up", MatrixInput::kFfn, s.ffn, s.width, gate_up + s.ffn * s.width},
      {"ffn_down", MatrixInput::kFfnDown, s.width, s.ffn, l.down.data()},
  };
  for (Matrix& m : all) m.name = absl::StrCat("blk.", layer, ".", m.name, ".weight");
  return all;
}

// sum over the rows of x G x^T, x [rows, cols]: the squared size of x's outputs.
double SquaredSize(const std::vector<float>& x, int64_t rows, MatrixView<const float> gram,
                   Executor& executor) {
  constexpr int64_t kPanel = 64;
  const int64_t cols = gram.cols;
  const int64_t panels = (rows + kPanel - 1) / kPanel;
  std::vector<double> parts(static_cast<size_t>(panels));
  executor.ParallelFor(panels, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scratch(static_cast<size_t>(kernels::GemmScratchFloats(cols)));
    std::vector<float> y(static_cast<size_t>(kPanel * cols));
    for (int64_t p = begin; p < end; ++p) {
      const float* from = x.data() + p * kPanel * cols;
      const int64_t n = std::min(kPanel, rows - p * kPanel);
      kernels::GemmNT(from, cols, gram.data, gram.row_stride, n, cols, cols, y.data(), cols,
                      scratch.data());
      double sum = 0;
      for (int64_t i = 0; i < n * cols; ++i)
        sum += static_cast<double>(from[i]) * static_cast<double>(y[static_cast<size_t>(i)]);
      parts[static_cast<size_t>(p)] = sum;
    }
  });
  double all = 0;
  for (double part : parts) all += part;
  return all;
}

class Run {
 public:
  Run(const Gguf& file, host::Model& model, const std::vector<int32_t>& tokens,
      const WeightPruning& how, const std::function<void(double)>& progress)
      : file_(file),
        model_(model),
        how_(how),
        progress_(progress),
        executor_(MakeTbbExecutor(how.threads)),
        windows_(model, tokens, how.window) {}

  absl::StatusOr<PrunedWeights> All() {
    SLUICE_RETURN_IF_ERROR(Check());
    host::EngineOptions options;
    options.threads = how_.threads;
    options.max_tokens = how_.window;
    options.on_input = [this](int64_t, MatrixInput input, int64_t n, const float* x) {
      if (!stats_.empty()) stats_[static_cast<size_t>(input)]->Add(n, x);
    };
    SLUICE_ASSIGN_OR_RETURN(engine_, host::Engine::Create(model_, options));
    for (int64_t layer = 0; layer < model_.shape.layers; ++layer) {
      SLUICE_RETURN_IF_ERROR(Observe(layer));
      SLUICE_RETURN_IF_ERROR(PruneLayer(layer));
      if (layer + 1 < model_.shape.layers) SLUICE_RETURN_IF_ERROR(Advance(layer));
    }
    Say(static_cast<double>(model_.shape.layers));
    return std::move(out_);
  }

 private:
  void Say(double layers) const {
    if (progress_) progress_(layers);
  }

  std::optional<PruneTarget> TargetOf(const Matrix& m) const {
    return how_.target_of ? how_.target_of(m.name, m.rows, m.cols) : how_.target;
  }

  // What would stop a later layer is told before the first.
  absl::Status Check() {
    for (int64_t layer = 0; layer < model_.shape.layers; ++layer) {
      for (const Matrix& m : MatricesOf(model_, layer)) {
        const std::optional<PruneTarget> target = TargetOf(m);
        const PrunerTraits any = {.name = m.name};
        if (target.has_value())
          SLUICE_RETURN_IF_ERROR(pruner_internal::CheckTarget(any, *target, m.rows, m.cols));
        for (int64_t i = 0; i < m.rows * m.cols; ++i) {
          if (!std::isfinite(m.weights[i]))
            return absl::InvalidArgumentError(absl::StrCat("element ", i, " of tensor '", m.name,
                                                           "' is ", m.weights[i],
                                                           "; allowed: finite numbers"));
        }
      }
    }
    return absl::OkStatus();
  }

  // Statistics of the layer's inputs; the streams stay where they are.
  absl::Status Observe(int64_t layer) {
    if (windows_.count() == 0) return absl::OkStatus();
    const host::ModelShape& s = model_.shape;
    const int64_t q = s.heads * s.head_dim;
    for (int64_t width : {s.width, q, s.width, s.ffn})
      stats_.push_back(std::make_unique<InputStats>(width, *executor_));
    std::vector<float> x;
    for (int64_t w = 0; w < windows_.count(); ++w) {
      for (const auto& stats : stats_) stats->BeginSample();
      x.assign(windows_.states(w), windows_.states(w) + windows_.floats(w));
      SLUICE_RETURN_IF_ERROR(engine_->RunLayerAlone(layer, windows_.length(w), x.data()));
      Say(static_cast<double>(layer) +
          0.5 * static_cast<double>(w + 1) / static_cast<double>(windows_.count()));
    }
    read_.clear();
    for (const auto& stats : stats_) read_.push_back(stats->Read());
    return absl::OkStatus();
  }

  absl::Status PruneLayer(int64_t layer) {
    for (const Matrix& m : MatricesOf(model_, layer)) {
      const absl::Status s = PruneMatrix(m);
      if (!s.ok()) return absl::Status(s.code(), absl::StrCat(m.name, ": ", s.message()));
    }
    stats_.clear();
    return absl::OkStatus();
  }

  absl::Status PruneMatrix(const Matrix& m) {
    const std::optional<PruneTarget> target = TargetOf(m);
    if (!target.has_value()) return absl::OkStatus();
    const size_t n = static_cast<size_t>(m.rows * m.cols);
    PruneInputs in;
    in.weights = {m.weights, m.rows, m.cols, m.cols};
    if (!stats_.empty()) in.stats = read_[static_cast<size_t>(m.input)];
    in.target = *target;
    const RunContext ctx = {{}, executor_.get()};
    size_t stages = how_.stages.size();
    if (how_.repair_attention_only && m.ffn()) {
      while (stages > 0 && how_.stages[stages - 1]->traits().repairs) --stages;
    }
    const auto run = how_.stages.first(stages);
    Mask& mask = out_.masks[m.name];
    SLUICE_ASSIGN_OR_RETURN(mask, pruning::PruneInStages(run, in, ctx));
    std::vector<float> pruned(n);
    SLUICE_RETURN_IF_ERROR(
        run.back()->Apply(in, mask, ctx, {pruned.data(), m.rows, m.cols, m.cols}));

    SLUICE_ASSIGN_OR_RETURN(const GgufTensor* tensor, file_.Tensor(m.name));
    std::string& bytes = out_.tensors[m.name];
    SLUICE_ASSIGN_OR_RETURN(bytes, GgufEncodeLike(*tensor, pruned));
    GgufTensor stored = *tensor;
    stored.data = reinterpret_cast<const std::byte*>(bytes.data());
    pruned = GgufDecode(stored);

    PrunedMatrix& said = out_.matrices.emplace_back();
    said.name = m.name;
    said.weights = m.rows * m.cols;
    said.zeros = std::count(pruned.begin(), pruned.end(), 0.0f);
    said.error = NAN;
    if (!stats_.empty()) {
      const std::vector<float> was(m.weights, m.weights + n);
      std::vector<float> missing = was;
      for (size_t i = 0; i < n; ++i) missing[i] -= pruned[i];
      const double size = SquaredSize(was, m.rows, in.stats.gram, *executor_);
      said.error = SquaredSize(missing, m.rows, in.stats.gram, *executor_) / size;
    }
    std::copy(pruned.begin(), pruned.end(), m.weights);
    return absl::OkStatus();
  }

  // The streams go through the layer as it is now.
  absl::Status Advance(int64_t layer) {
    for (int64_t w = 0; w < windows_.count(); ++w) {
      SLUICE_RETURN_IF_ERROR(engine_->RunLayerAlone(layer, windows_.length(w), windows_.states(w)));
      Say(static_cast<double>(layer) + 0.5 +
          0.5 * static_cast<double>(w + 1) / static_cast<double>(windows_.count()));
    }
    return absl::OkStatus();
  }

  const Gguf& file_;
  host::Model& model_;
  const WeightPruning& how_;
  const std::function<void(double)>& progress_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<host::Engine> engine_;
  Windows windows_;
  std::vector<std::unique_ptr<InputStats>> stats_;  // by MatrixInput, while they are gathered
  std::vector<PruneStats> read_;                    // their views
  PrunedWeights out_;
};
}  // namespace

absl::StatusOr<PrunedWeights> PruneWeights(const Gguf& file, host::Model& model,
                                           const std::vector<int32_t>& tokens,
                                           const WeightPruning& how,
                                           const std::function<void(double)>& progress) {
  if (how.stages.empty()) return absl::InvalidArgumentError("pruning: no stage was given");
  if (how.window < 1)
    return absl::InvalidArgumentError(
        absl::StrCat("windows of ", how.window, " tokens; allowed: 1 or more"));
  SLUICE_RETURN_IF_ERROR(CheckVocabulary(model, tokens));
  return Run(file, model, tokens, how, progress).All();
}
}  // namespace lab
SLUICE_END_NAMESPACE
