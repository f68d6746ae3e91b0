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
#include "sluice/runtime/lab/prune/layer_matrices.h"
#include "sluice/runtime/lab/prune/windows.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
using host::MatrixInput;

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
  // `in_place`: the first way's weights become the model's, and later layers see what they say.
  Run(const Gguf& file, host::Model& model, const std::vector<int32_t>& tokens,
      absl::Span<const WeightPruning> ways, bool in_place,
      const std::function<void(double)>& progress)
      : file_(file),
        model_(model),
        ways_(ways),
        in_place_(in_place),
        progress_(progress),
        executor_(MakeTbbExecutor(ways[0].threads)),
        windows_(model, tokens, ways[0].window),
        out_(ways.size()) {}

  absl::StatusOr<std::vector<PrunedWeights>> All() {
    SLUICE_RETURN_IF_ERROR(Check());
    host::EngineOptions options;
    options.threads = ways_[0].threads;
    options.max_tokens = ways_[0].window;
    options.on_input = [this](int64_t, MatrixInput input, int64_t n, const float* x) {
      if (!stats_.empty()) stats_[static_cast<size_t>(input)]->Add(n, x);
    };
    SLUICE_ASSIGN_OR_RETURN(engine_, host::Engine::Create(model_, options));
    for (int64_t layer = 0; layer < model_.shape.layers; ++layer) {
      SLUICE_RETURN_IF_ERROR(Observe(layer));
      for (size_t way = 0; way < ways_.size(); ++way)
        SLUICE_RETURN_IF_ERROR(PruneLayer(layer, ways_[way], out_[way]));
      stats_.clear();
      if (layer + 1 < model_.shape.layers) SLUICE_RETURN_IF_ERROR(Advance(layer));
    }
    Say(static_cast<double>(model_.shape.layers));
    return std::move(out_);
  }

 private:
  void Say(double layers) const {
    if (progress_) progress_(layers);
  }

  static std::optional<PruneTarget> TargetOf(const WeightPruning& how, const std::string& name,
                                             const LayerMatrix& m) {
    return how.target_of ? how.target_of(name, m.rows, m.cols) : how.target;
  }

  // What would stop a later layer is told before the first.
  absl::Status Check() {
    for (int64_t layer = 0; layer < model_.shape.layers; ++layer) {
      for (const LayerMatrix& m : LayerMatrices(model_, layer)) {
        const std::string name = m.Tensor(layer);
        const PrunerTraits any = {.name = name};
        for (const WeightPruning& how : ways_) {
          const std::optional<PruneTarget> target = TargetOf(how, name, m);
          if (target.has_value())
            SLUICE_RETURN_IF_ERROR(pruner_internal::CheckTarget(any, *target, m.rows, m.cols));
        }
        for (int64_t i = 0; i < m.rows * m.cols; ++i) {
          if (!std::isfinite(m.weights[i]))
            return absl::InvalidArgumentError(absl::StrCat("element ", i, " of tensor '", name,
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

  absl::Status PruneLayer(int64_t layer, const WeightPruning& how, PrunedWeights& out) {
    for (const LayerMatrix& m : LayerMatrices(model_, layer)) {
      const std::string name = m.Tensor(layer);
      const absl::Status s = PruneMatrix(name, m, how, out);
      if (!s.ok()) return absl::Status(s.code(), absl::StrCat(name, ": ", s.message()));
    }
    return absl::OkStatus();
  }

  absl::Status PruneMatrix(const std::string& name, const LayerMatrix& m, const WeightPruning& how,
                           PrunedWeights& out) {
    const std::optional<PruneTarget> target = TargetOf(how, name, m);
    if (!target.has_value()) return absl::OkStatus();
    const size_t n = static_cast<size_t>(m.rows * m.cols);
    PruneInputs in;
    in.weights = {m.weights, m.rows, m.cols, m.cols};
    if (!stats_.empty()) in.stats = read_[static_cast<size_t>(m.input)];
    in.target = *target;
    const RunContext ctx = {{}, executor_.get()};
    size_t stages = how.stages.size();
    if (how.repair_attention_only && m.ffn()) {
      while (stages > 0 && how.stages[stages - 1]->traits().repairs) --stages;
    }
    const auto run = how.stages.first(stages);
    Mask& mask = out.masks[name];
    SLUICE_ASSIGN_OR_RETURN(mask, pruning::PruneInStages(run, in, ctx));
    std::vector<float> pruned(n);
    SLUICE_RETURN_IF_ERROR(
        run.back()->Apply(in, mask, ctx, {pruned.data(), m.rows, m.cols, m.cols}));

    SLUICE_ASSIGN_OR_RETURN(const GgufTensor* tensor, file_.Tensor(name));
    std::string& bytes = out.tensors[name];
    SLUICE_ASSIGN_OR_RETURN(bytes, GgufEncodeLike(*tensor, pruned));
    pruned = GgufDecodeAs(*tensor, bytes);

    PrunedMatrix& said = out.matrices.emplace_back();
    said.name = name;
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
    if (in_place_) std::copy(pruned.begin(), pruned.end(), m.weights);
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
  const absl::Span<const WeightPruning> ways_;
  const bool in_place_;
  const std::function<void(double)>& progress_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<host::Engine> engine_;
  Windows windows_;
  std::vector<std::unique_ptr<InputStats>> stats_;  // by MatrixInput, while they are gathered
  std::vector<PruneStats> read_;                    // their views
  std::vector<PrunedWeights> out_;                  // a way each
};

absl::Status CheckWay(const WeightPruning& how) {
  if (how.stages.empty()) return absl::InvalidArgumentError("pruning: no stage was given");
  if (how.window >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("windows of ", how.window, " tokens; allowed: 1 or more"));
}
}  // namespace

std::vector<float> GgufDecodeAs(const GgufTensor& like, const std::string& bytes) {
  GgufTensor stored = like;
  stored.data = reinterpret_cast<const std::byte*>(bytes.data());
  return GgufDecode(stored);
}

absl::StatusOr<PrunedWeights> PruneWeights(const Gguf& file, host::Model& model,
                                           const std::vector<int32_t>& tokens,
                                           const WeightPruning& how,
                                           const std::function<void(double)>& progress) {
  SLUICE_RETURN_IF_ERROR(CheckWay(how));
  SLUICE_RETURN_IF_ERROR(CheckVocabulary(model, tokens));
  SLUICE_ASSIGN_OR_RETURN(auto out, Run(file, model, tokens, {&how, 1}, true, progress).All());
  return std::move(out[0]);
}

absl::StatusOr<std::vector<PrunedWeights>> PruneEachWay(
    const Gguf& file, host::Model& model, const std::vector<int32_t>& tokens,
    absl::Span<const WeightPruning> ways, const std::function<void(double)>& progress) {
  if (ways.empty()) return std::vector<PrunedWeights>();
  for (const WeightPruning& how : ways) {
    SLUICE_RETURN_IF_ERROR(CheckWay(how));
    if (how.window != ways[0].window || how.threads != ways[0].threads)
      return absl::InvalidArgumentError(absl::StrCat(
          "ways of pruning in windows of ", ways[0].window, " and ", how.window, " tokens with ",
          ways[0].threads, " and ", how.threads, " threads; allowed: the same of all"));
  }
  SLUICE_RETURN_IF_ERROR(CheckVocabulary(model, tokens));
  return Run(file, model, tokens, ways, false, progress).All();
}

GgufWriter WithTensors(const Gguf& file, const std::map<std::string, std::string>& tensors) {
  GgufWriter out;
  out.CopyValues(file);
  for (const std::string& name : file.tensor_names()) {
    GgufTensor t = **file.Tensor(name);
    const auto changed = tensors.find(name);
    if (changed != tensors.end())
      t.data = reinterpret_cast<const std::byte*>(changed->second.data());
    out.Copy(t);
  }
  return out;
}
}  // namespace lab
SLUICE_END_NAMESPACE
