#include "sluice/runtime/lab/prune/prune.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/whole_file.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/lab/compare/totals.h"
#include "sluice/runtime/lab/progress.h"
#include "sluice/runtime/lab/prune/column_groups.h"
#include "sluice/runtime/lab/prune/held_out.h"
#include "sluice/runtime/lab/prune/layer_matrices.h"
#include "sluice/runtime/lab/prune/prune_experts.h"
#include "sluice/runtime/lab/prune/prune_heads.h"
#include "sluice/runtime/lab/prune/prune_layers.h"
#include "sluice/runtime/lab/prune/prune_neurons.h"
#include "sluice/runtime/lab/prune/prune_weights.h"
#include "sluice/runtime/lab/score.h"
#include "sluice/runtime/text/text_file.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
bool SameFile(const std::string& a, const std::string& b) {
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

// All tokens of a text or of a file of ids.
absl::StatusOr<std::vector<int32_t>> ReadText(const host::Model& model, const std::string& path) {
  if (IsTokenFile(path)) return ReadTokens(path, 0, -1);
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  return model.tokenizer.Encode(text);
}

// Tokens [skip, skip + count) of `all`, which `path` holds; those from `skip` on without a count.
absl::StatusOr<TokenRange> Part(const std::string& path, const std::vector<int32_t>& all,
                                int64_t skip, std::optional<int64_t> count = std::nullopt) {
  const int64_t held = std::ssize(all);
  if (skip <= held && count.value_or(0) <= held - skip)
    return TokenRange{skip, count.has_value() ? skip + *count : held};
  return absl::OutOfRangeError(absl::StrCat(path, " holds ", held, " tokens; asked for ",
                                            count.value_or(0), " after ", skip));
}

struct Texts {
  std::vector<int32_t> calibration;
  std::vector<int32_t> held_out;  // the whole text
  std::vector<int64_t> windows;   // of it: where they begin
};
absl::Status SpreadHeldOut(const PruneOptions& o, absl::Span<const TokenRange> ranges, Texts& t) {
  if (o.held_out_count < o.window)
    return absl::OutOfRangeError(absl::StrCat(o.held_out_count,
                                              " held-out tokens are less than a window of ",
                                              o.window, "; allowed: a window or more"));
  auto windows = SpreadWindows(ranges, o.window, o.held_out_count / o.window);
  if (!windows.ok()) {
    const std::string& path = o.held_out.empty() ? o.calibrate : o.held_out;
    return absl::Status(windows.status().code(), absl::StrCat("held-out tokens of ", path, ": ",
                                                              windows.status().message()));
  }
  t.windows = *std::move(windows);
  return absl::OkStatus();
}
absl::StatusOr<Texts> ReadTexts(const host::Model& model, const PruneOptions& o) {
  Texts t;
  TokenRange calibrated;
  std::vector<int32_t> all;
  if (!o.calibrate.empty()) {
    if (o.count < o.window)
      return absl::OutOfRangeError(absl::StrCat("a calibration text of ", o.count,
                                                " tokens is shorter than a window of ", o.window,
                                                "; allowed: a window or more"));
    SLUICE_ASSIGN_OR_RETURN(all, ReadText(model, o.calibrate));
    SLUICE_ASSIGN_OR_RETURN(calibrated, Part(o.calibrate, all, o.skip, o.count));
    t.calibration.assign(all.begin() + calibrated.begin, all.begin() + calibrated.end);
  }
  if (o.held_out.empty()) {
    if (o.calibrate.empty()) return t;
    SLUICE_ASSIGN_OR_RETURN(const TokenRange rest,
                            Part(o.calibrate, all, calibrated.end + o.held_out_skip));
    t.held_out = std::move(all);
    SLUICE_RETURN_IF_ERROR(SpreadHeldOut(o, {rest}, t));
    return t;
  }
  SLUICE_ASSIGN_OR_RETURN(t.held_out, ReadText(model, o.held_out));
  SLUICE_ASSIGN_OR_RETURN(const TokenRange rest, Part(o.held_out, t.held_out, o.held_out_skip));
  const bool same = !o.calibrate.empty() && SameFile(o.held_out, o.calibrate);
  SLUICE_RETURN_IF_ERROR(SpreadHeldOut(o, Without(rest, same ? calibrated : TokenRange{}), t));
  return t;
}

absl::StatusOr<std::vector<double>> HeldOut(const host::Model& model, const Texts& texts,
                                            const PruneOptions& o, const std::string& what) {
  const auto progress = Progress(what, std::ssize(texts.windows));
  host::EngineOptions engine;
  engine.threads = o.threads;
  return LogPerplexities(model, texts.held_out, texts.windows, o.window, engine, progress);
}

double Perplexity(const std::vector<double>& logs) { return std::exp(MeanAndErrorOf(logs).mean); }

// Every window, all of them, and how sure the change is.
void PrintHeldOut(const Texts& texts, const PruneOptions& o, const std::vector<double>& before,
                  const std::vector<double>& after) {
  std::vector<double> changes;
  for (size_t w = 0; w < texts.windows.size(); ++w) {
    changes.push_back(after[w] - before[w]);
    std::printf("held-out window at %lld: perplexity %.4f, before %.4f, log perplexity %+.4f\n",
                static_cast<long long>(texts.windows[w]), std::exp(after[w]), std::exp(before[w]),
                changes[w]);
  }
  std::printf("perplexity %.4f, before %.4f, over %lld held-out tokens in windows of %lld\n",
              Perplexity(after), Perplexity(before),
              static_cast<long long>(std::ssize(texts.windows) * o.window),
              static_cast<long long>(o.window));
  const MeanInterval change = ChangeInterval(changes, CompareOptions{});
  if (std::isnan(change.low)) {
    std::printf("log perplexity %+.4f in one window, which has no interval\n", change.value);
    return;
  }
  std::printf("log perplexity %+.4f [%+.4f, %+.4f] a window (95 %%, %td windows)\n", change.value,
              change.low, change.high, std::ssize(changes));
}

void PrintErrors(const std::vector<PrunedMatrix>& matrices) {
  std::string layer;
  for (const PrunedMatrix& m : matrices) {
    const std::vector<std::string> parts = absl::StrSplit(m.name, '.');
    if (parts[1] != layer) std::printf("%slayer %s:", layer.empty() ? "" : "\n", parts[1].c_str());
    layer = parts[1];
    std::printf(" %s %.4f", parts[2].c_str(), std::sqrt(m.error));
  }
  std::printf("\n");
}

absl::StatusOr<GgufWriter> PruneToWeights(const Gguf& file, host::Model& model, const Texts& texts,
                                          const PruneOptions& o) {
  SLUICE_ASSIGN_OR_RETURN(const PruneTarget target, ReadPruneTarget(o));
  SLUICE_ASSIGN_OR_RETURN(const PruneStages stages, MakePruneStages(o));
  for (const auto& stage : stages) {
    if (stage->traits().reads != 0 && texts.calibration.empty())
      return absl::InvalidArgumentError(
          absl::StrCat(stage->name(), " reads statistics of a text; give one to calibrate on"));
  }
  const WeightPruning how = {
      .stages = stages,
      .target = target,
      .repair_attention_only = o.repair_attention_only,
      .window = o.window,
      .threads = o.threads,
  };
  const int64_t layers = model.shape.layers;
  const auto progress = Progress(absl::StrCat("pruning ", layers, " layers"), 1000 * layers);
  SLUICE_ASSIGN_OR_RETURN(const PrunedWeights pruned,
                          PruneWeights(file, model, texts.calibration, how,
                                       [&](double done) { progress(std::llround(1000 * done)); }));

  if (!texts.calibration.empty()) {
    std::printf("relative error of the outputs over %td tokens\n", std::ssize(texts.calibration));
    PrintErrors(pruned.matrices);
  }
  int64_t zeros = 0;
  int64_t weights = 0;
  for (const PrunedMatrix& m : pruned.matrices) {
    zeros += m.zeros;
    weights += m.weights;
  }
  std::printf("%lld of %lld weights are 0, %.4f\n", static_cast<long long>(zeros),
              static_cast<long long>(weights),
              static_cast<double>(zeros) / static_cast<double>(weights));

  return WithTensors(file, pruned.tensors);
}

// Of layers and neurons: they are measured on a text, and a share of them goes.
absl::Status CheckWhole(const Texts& texts, const PruneOptions& o) {
  if (!o.pattern.empty() || !o.start.empty() || o.scope != "row")
    return absl::InvalidArgumentError(
        absl::StrCat("a pattern, scope or start for whole ", o.method, "; allowed: a sparsity"));
  if (!texts.calibration.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(o.method, " are measured on a text; give one to calibrate on"));
}

// The masks that keep `stay` of the blocks of `wide` columns in each of `groups` equal parts of
// every layer's tensor `.part`, by the sum of Wanda's scores: what a weight adds to the outputs
// over the text.
absl::StatusOr<std::map<std::string, Mask>> MaskColumns(const Gguf& file, host::Model& model,
                                                        const Texts& texts, const PruneOptions& o,
                                                        const std::string& part, int64_t groups,
                                                        int64_t wide, int64_t stay) {
  SLUICE_ASSIGN_OR_RETURN(auto wanda, InstalledMethods().registry.pruners.Create("weight/wanda"));
  PruneStages stages;
  stages.push_back(std::make_unique<ColumnGroups>(std::move(wanda), groups));
  WeightPruning how = {.stages = stages, .window = o.window, .threads = o.threads};
  how.target_of = [&](const std::string& name, int64_t rows,
                      int64_t) -> std::optional<PruneTarget> {
    if (!absl::EndsWith(name, part)) return std::nullopt;
    return PruneTarget{.kind = PruneTarget::Kind::kCount,
                       .scope = PruneTarget::Scope::kBlock,
                       .count = stay,
                       .block_rows = rows,
                       .block_cols = wide};
  };
  const int64_t layers = model.shape.layers;
  const auto progress = Progress(absl::StrCat("pruning ", layers, " layers"), 1000 * layers);
  SLUICE_ASSIGN_OR_RETURN(PrunedWeights pruned,
                          PruneWeights(file, model, texts.calibration, how,
                                       [&](double done) { progress(std::llround(1000 * done)); }));
  return std::move(pruned.masks);
}

absl::StatusOr<GgufWriter> PruneToNeurons(const Gguf& file, host::Model& model, const Texts& texts,
                                          const PruneOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckWhole(texts, o));
  const int64_t neurons = model.shape.ffn;
  const int64_t stay = NeuronsThatStay(neurons, o.sparsity);
  if (stay == neurons || stay == 0)
    return absl::InvalidArgumentError(absl::StrCat(
        "a share of ", o.sparsity, " of ", neurons, " neurons a layer, of which blocks of 32 stay",
        "; allowed: a share by which at least one block goes and one stays"));
  SLUICE_ASSIGN_OR_RETURN(const auto masks,
                          MaskColumns(file, model, texts, o, ".ffn_down.weight", 1, 1, stay));
  std::printf("%lld of %lld neurons a layer stay\n", static_cast<long long>(stay),
              static_cast<long long>(neurons));
  return WithoutNeurons(file, masks);
}

absl::StatusOr<GgufWriter> PruneToHeads(const Gguf& file, host::Model& model, const Texts& texts,
                                        const PruneOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckWhole(texts, o));
  const host::ModelShape& s = model.shape;
  SLUICE_ASSIGN_OR_RETURN(const int64_t stay, GroupsThatStay(s.kv_heads, o.sparsity));
  const int64_t shared = s.heads / s.kv_heads;
  SLUICE_ASSIGN_OR_RETURN(
      const auto masks,
      MaskColumns(file, model, texts, o, ".attn_output.weight", 1, shared * s.head_dim, stay));
  std::printf("%lld of %lld KV heads a layer stay, each with its %lld query heads\n",
              static_cast<long long>(stay), static_cast<long long>(s.kv_heads),
              static_cast<long long>(shared));
  return WithoutHeads(file, s, masks);
}

absl::StatusOr<GgufWriter> PruneToQueryHeads(const Gguf& file, host::Model& model,
                                             const Texts& texts, const PruneOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckWhole(texts, o));
  const host::ModelShape& s = model.shape;
  const int64_t shared = s.heads / s.kv_heads;
  SLUICE_ASSIGN_OR_RETURN(const int64_t stay, QueryHeadsThatStay(shared, s.kv_heads, o.sparsity));
  SLUICE_ASSIGN_OR_RETURN(
      const auto masks,
      MaskColumns(file, model, texts, o, ".attn_output.weight", s.kv_heads, s.head_dim, stay));
  std::printf("%lld of %lld query heads of each of %lld KV heads a layer stay\n",
              static_cast<long long>(stay), static_cast<long long>(shared),
              static_cast<long long>(s.kv_heads));
  return WithoutHeads(file, s, masks);
}

absl::StatusOr<GgufWriter> PruneToLayers(const Gguf& file, const host::Model& model,
                                         const Texts& texts, const PruneOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckWhole(texts, o));
  const int64_t layers = model.shape.layers;
  const auto progress = Progress("measuring layers", layers);
  SLUICE_ASSIGN_OR_RETURN(const std::vector<double> influence,
                          LayerInfluence(model, texts.calibration, o.window, o.threads,
                                         [&](double done) { progress(std::llround(done)); }));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int64_t> stay, LayersThatStay(influence, o.sparsity));
  for (int64_t l = 0; l < layers; ++l) {
    const bool stays = std::find(stay.begin(), stay.end(), l) != stay.end();
    std::printf("layer %lld: turns the state by 1 - cos = %.4f%s\n", static_cast<long long>(l),
                influence[static_cast<size_t>(l)], stays ? "" : ", goes");
  }
  return WithLayers(file, stay);
}

absl::StatusOr<GgufWriter> PruneToExperts(const Gguf& file, const host::Model& model,
                                          const Texts& texts, const PruneOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckWhole(texts, o));
  const auto progress = Progress("measuring experts", std::ssize(texts.calibration));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::vector<double>> use,
                          ExpertUse(model, texts.calibration, o.window, o.threads, progress));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::vector<int64_t>> stay,
                          ExpertsThatStay(use, o.sparsity, model.shape.experts_used));
  const auto choices =
      static_cast<double>(std::ssize(texts.calibration) * model.shape.experts_used);
  for (size_t layer = 0; layer < use.size(); ++layer) {
    std::printf("layer %zu: share of the choices", layer);
    for (size_t e = 0; e < use[layer].size(); ++e) {
      const bool stays = std::count(stay[layer].begin(), stay[layer].end(), int64_t(e)) > 0;
      std::printf(" %.3f%s", use[layer][e] / choices, stays ? "" : " (goes)");
    }
    std::printf("\n");
  }
  return WithExperts(file, stay);
}

absl::StatusOr<GgufWriter> PruneBy(const Gguf& file, host::Model& model, const Texts& texts,
                                   const PruneOptions& o) {
  if (o.method == "layers") return PruneToLayers(file, model, texts, o);
  if (o.method == "neurons") return PruneToNeurons(file, model, texts, o);
  if (o.method == "heads") return PruneToHeads(file, model, texts, o);
  if (o.method == "query_heads") return PruneToQueryHeads(file, model, texts, o);
  if (o.method == "experts") return PruneToExperts(file, model, texts, o);
  return PruneToWeights(file, model, texts, o);
}
}  // namespace

absl::StatusOr<PruneTarget> ReadPruneTarget(const PruneOptions& o) {
  if (!(o.sparsity >= 0 && o.sparsity < 1))
    return absl::OutOfRangeError(
        absl::StrCat("a sparsity of ", o.sparsity, "; allowed: 0 to below 1"));
  PruneTarget t = {.ratio = o.sparsity};
  if (o.scope == "layer") {
    t.scope = PruneTarget::Scope::kLayer;
  } else if (o.scope != "row") {
    return absl::InvalidArgumentError(
        absl::StrCat("a share of '", o.scope, "'; allowed: row, layer"));
  }
  if (o.pattern.empty()) return t;

  const auto read = [&](char between, int64_t& first, int64_t& second) {
    const std::vector<std::string> parts = absl::StrSplit(o.pattern, between);
    return parts.size() == 2 && absl::SimpleAtoi(parts[0], &first) &&
           absl::SimpleAtoi(parts[1], &second) && first > 0 && second > 0;
  };
  if (t.scope == PruneTarget::Scope::kLayer)
    return absl::InvalidArgumentError(
        absl::StrCat("the pattern ", o.pattern, " of a layer; allowed: a pattern or a scope"));
  if (read(':', t.n, t.m) && t.n < t.m) {
    const double share = 1 - static_cast<double>(t.n) / static_cast<double>(t.m);
    if (std::abs(share - o.sparsity) > 1e-9)
      return absl::InvalidArgumentError(absl::StrCat("the pattern ", o.pattern,
                                                     " is a sparsity of ", share, ", and ",
                                                     o.sparsity, " was given"));
    t.kind = PruneTarget::Kind::kNofM;
    return t;
  }
  if (read('x', t.block_rows, t.block_cols)) {
    t.scope = PruneTarget::Scope::kBlock;
    return t;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the pattern '", o.pattern,
                   "'; allowed: N:M with N below M (N of every M stay), or blocks ROWSxCOLUMNS"));
}

absl::StatusOr<PruneStages> MakePruneStages(const PruneOptions& o) {
  const FactoryMap<WeightPruner>& methods = InstalledMethods().registry.pruners;
  auto last = methods.Create(o.method);
  if (!last.ok()) return WithRefused(last.status());
  PruneStages stages;
  if ((*last)->traits().repairs) {
    auto first = methods.Create(o.start.empty() ? "wanda" : o.start);
    if (!first.ok()) return WithRefused(first.status());
    if ((*first)->traits().repairs)
      return absl::InvalidArgumentError(absl::StrCat(
          "'", o.start, "' repairs a mask and cannot start one; allowed: one that chooses"));
    stages.push_back(*std::move(first));
  } else if (!o.start.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a start, '", o.start, "', for ", o.method,
        ", which chooses its own mask; allowed with a method that repairs one, as dsnot"));
  }
  stages.push_back(*std::move(last));
  return stages;
}

// Before any work: a method that there is and that this model can be pruned by.
absl::Status CheckMethod(const host::Model& model, const PruneOptions& o) {
  const bool experts = model.shape.experts > 0;
  if (o.method == "layers") return absl::OkStatus();
  if (o.method == "experts")
    return experts ? absl::OkStatus()
                   : absl::InvalidArgumentError(
                         absl::StrCat(o.in,
                                      " has no experts to prune; allowed: layers, neurons, heads, "
                                      "query_heads, weights"));
  const bool whole = o.method == "neurons" || o.method == "heads" || o.method == "query_heads";
  if (!whole) SLUICE_RETURN_IF_ERROR(MakePruneStages(o).status());
  if (!experts) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("'", o.method, "' inside experts is not implemented, and ", o.in,
                   " is a Mixture of Experts; allowed: layers, experts"));
}

absl::Status CheckOtherFile(const std::string& in, const std::string& out) {
  if (!SameFile(in, out)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(out, " is the file that is read; allowed: another file to write"));
}

absl::Status RunPrune(const PruneOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckOtherFile(o.in, o.out));
  SLUICE_RETURN_IF_ERROR(ReadPruneTarget(o).status());
  SLUICE_ASSIGN_OR_RETURN(const Gguf file, Gguf::Open(o.in));
  SLUICE_ASSIGN_OR_RETURN(host::Model model, host::LoadModel(o.in));
  SLUICE_RETURN_IF_ERROR(CheckArchitecture(file, o.in));
  SLUICE_RETURN_IF_ERROR(CheckLength("a window", o.window, 2, model));
  SLUICE_RETURN_IF_ERROR(CheckMethod(model, o));
  SLUICE_RETURN_IF_ERROR(CheckWritable(o.out));
  SLUICE_ASSIGN_OR_RETURN(const Texts texts, ReadTexts(model, o));

  std::vector<double> before;
  if (!texts.windows.empty()) {
    SLUICE_ASSIGN_OR_RETURN(before, HeldOut(model, texts, o, "perplexity before"));
  }
  SLUICE_ASSIGN_OR_RETURN(const GgufWriter out, PruneBy(file, model, texts, o));
  SLUICE_RETURN_IF_ERROR(out.Write(o.out));
  std::printf("wrote %s: %ju bytes (before: %ju)\n", o.out.c_str(),
              std::filesystem::file_size(o.out), std::filesystem::file_size(o.in));
  if (texts.windows.empty()) {
    std::printf("no held-out tokens were given: perplexity is not measured\n");
    return absl::OkStatus();
  }
  SLUICE_ASSIGN_OR_RETURN(const host::Model written, host::LoadModel(o.out));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<double> after,
                          HeldOut(written, texts, o, "perplexity after"));
  PrintHeldOut(texts, o, before, after);
  return absl::OkStatus();
}
}  // namespace lab
SLUICE_END_NAMESPACE
