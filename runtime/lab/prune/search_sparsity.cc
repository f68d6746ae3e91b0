#include "sluice/runtime/lab/prune/search_sparsity.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"
#include "sluice/policies/search/control.h"
#include "sluice/runtime/base/whole_file.h"
#include "sluice/runtime/lab/compare/totals.h"
#include "sluice/runtime/lab/prune/held_out.h"
#include "sluice/runtime/lab/prune/layer_matrices.h"
#include "sluice/runtime/lab/prune/prune_weights.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
double MeanOf(const std::vector<double>& x) { return MeanAndErrorOf(x).mean; }

// The documents of a text that are searched on and those that are not, by where they begin.
struct Documents {
  std::vector<int64_t> searched, held_out;
};
absl::StatusOr<Documents> Divide(const SparsitySearchOptions& o, int64_t tokens) {
  Documents d;
  const TokenRange all = {0, tokens};
  SLUICE_ASSIGN_OR_RETURN(d.searched, SpreadWindows({all}, o.context, o.documents));
  std::vector<TokenRange> others = {all};
  for (int64_t begin : d.searched) {
    const TokenRange rest = others.back();
    others.pop_back();
    const std::vector<TokenRange> left = Without(rest, {begin, begin + o.context});
    others.insert(others.end(), left.begin(), left.end());
  }
  int64_t room = 0;
  for (const TokenRange& r : others) room += r.size() / o.context;
  if (room == 0)
    return absl::OutOfRangeError(absl::StrCat(
        o.documents, " documents of ", o.context, " tokens are searched on, and of ", tokens,
        " tokens none are left to report on; allowed: fewer or shorter documents"));
  const int64_t held_out = std::min(room, o.held_out);
  SLUICE_ASSIGN_OR_RETURN(d.held_out, SpreadWindows(others, o.context, held_out));
  return d;
}

// A group's name within a layer; groups of one layer come in the order of its matrices.
std::string GroupOf(const LayerMatrix& m, SparsityGroups groups) {
  if (groups == SparsityGroups::kMatrix) return m.part;
  if (groups == SparsityGroups::kLayer) return "layers";
  return m.ffn() ? "ffn" : "attention";
}

// A model whose groups take any operator each.
class Sparse {
 public:
  Sparse(const Gguf& file, host::Model& model, const std::vector<int32_t>& tokens,
         const SparsitySearchOptions& o)
      : file_(file), model_(model), tokens_(tokens), o_(o) {}
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  ~Sparse() { (void)Assemble(dense_); }

  absl::Status Prepare(std::vector<SparsityOperator> operators, const Documents& documents) {
    operators_ = std::move(operators);
    std::vector<int32_t> text;
    for (int64_t begin : documents.searched) {
      const auto first = tokens_.begin() + begin;
      text.insert(text.end(), first, first + o_.context);
    }
    std::vector<WeightPruning> ways;
    for (const SparsityOperator& op : operators_) {
      way_of_.push_back(op.stages.empty() ? -1 : std::ssize(ways));
      if (op.stages.empty()) continue;
      ways.push_back({.stages = op.stages,
                      .target = op.target,
                      .window = o_.context,
                      .threads = o_.engine.threads});
    }
    const auto layers = static_cast<double>(model_.shape.layers);
    SLUICE_ASSIGN_OR_RETURN(ways_, PruneEachWay(file_, model_, text, ways, [&](double done) {
                              Say(absl::StrCat(ways.size(), " operators of ", layers, " layers"),
                                  done / layers);
                            }));
    Group();
    return absl::OkStatus();
  }

  // Share of the weights that operator k keeps of group g, of all groups' weights.
  const std::vector<std::vector<double>>& cost() const { return cost_; }
  int64_t weights() const { return weights_; }
  int64_t operators() const { return std::ssize(operators_); }
  const std::string& text(int64_t k) const { return operators_[static_cast<size_t>(k)].text; }
  Plan Everywhere(int64_t k) const { return Plan(groups_.size(), static_cast<int>(k)); }
  // No operator anywhere: not a choice of the search where the palette has none.
  const Plan& dense() const { return dense_; }
  // Log perplexity of documents under a plan.
  absl::StatusOr<std::vector<double>> Logs(const Plan& plan, absl::Span<const int64_t> documents) {
    SLUICE_RETURN_IF_ERROR(Assemble(plan));
    return LogPerplexities(model_, tokens_, documents, o_.context, o_.engine);
  }
  double Kept(const Plan& plan) const {
    double kept = 0;
    for (size_t g = 0; g < plan.size(); ++g) kept += cost_[g][static_cast<size_t>(plan[g])];
    return kept;
  }

  // The tensors of a plan that are not the file's.
  std::map<std::string, std::string> Tensors(const Plan& plan) const {
    std::map<std::string, std::string> tensors;
    for (size_t g = 0; g < plan.size(); ++g) {
      for (const Member& m : groups_[g].members) {
        const std::string* bytes = BytesOf(m, plan[g]);
        if (bytes != nullptr) tensors[m.tensor] = *bytes;
      }
    }
    return tensors;
  }

  // Equal neighbours among a kind's layers are written once.
  std::string Text(const Plan& plan) const {
    std::vector<std::string> kinds;
    std::vector<std::vector<int>> by_layer;
    for (size_t g = 0; g < plan.size(); ++g) {
      const auto at = std::find(kinds.begin(), kinds.end(), groups_[g].kind);
      const auto kind = static_cast<size_t>(at - kinds.begin());
      if (at == kinds.end()) {
        kinds.push_back(groups_[g].kind);
        by_layer.emplace_back();
      }
      by_layer[kind].push_back(plan[g]);
    }
    std::vector<std::string> parts;
    for (size_t k = 0; k < kinds.size(); ++k) {
      std::vector<std::string> runs;
      for (size_t i = 0; i < by_layer[k].size();) {
        size_t end = i;
        while (end < by_layer[k].size() && by_layer[k][end] == by_layer[k][i]) ++end;
        runs.push_back(absl::StrCat(end - i, "*", text(by_layer[k][i])));
        i = end;
      }
      parts.push_back(absl::StrCat(kinds[k], "(", absl::StrJoin(runs, " | "), ")"));
    }
    return absl::StrJoin(parts, ", ");
  }

 private:
  struct Member {
    std::string tensor;
    LayerMatrix matrix;
  };
  struct Slot {
    std::string kind;
    int64_t layer = 0;
    std::vector<Member> members;
  };
  void Say(const std::string& what, double share) const {
    if (o_.progress) o_.progress(what, share);
  }

  void Group() {
    for (int64_t layer = 0; layer < model_.shape.layers; ++layer) {
      for (const LayerMatrix& m : LayerMatrices(model_, layer)) {
        const std::string kind = GroupOf(m, o_.groups);
        if (groups_.empty() || groups_.back().layer != layer || groups_.back().kind != kind)
          groups_.push_back({kind, layer, {}});
        groups_.back().members.push_back({m.Tensor(layer), m});
        weights_ += m.rows * m.cols;
      }
    }
    for (const Slot& slot : groups_) {
      std::vector<double>& of_slot = cost_.emplace_back();
      for (int64_t way : way_of_) {
        int64_t kept = 0;
        for (const Member& m : slot.members) {
          kept += way < 0 ? m.matrix.rows * m.matrix.cols
                          : ways_[static_cast<size_t>(way)].masks.at(m.tensor).CountKept();
        }
        of_slot.push_back(static_cast<double>(kept) / static_cast<double>(weights_));
      }
    }
    dense_.assign(groups_.size(), -1);
    now_ = dense_;
  }

  // What operator `choice` makes of a matrix, in the file's type; nullptr: the file's own.
  const std::string* BytesOf(const Member& m, int choice) const {
    const int64_t way = choice < 0 ? -1 : way_of_[static_cast<size_t>(choice)];
    return way < 0 ? nullptr : &ways_[static_cast<size_t>(way)].tensors.at(m.tensor);
  }

  absl::Status Assemble(const Plan& plan) {
    for (size_t g = 0; g < plan.size(); ++g) {
      if (plan[g] == now_[g]) continue;
      for (const Member& m : groups_[g].members) {
        SLUICE_ASSIGN_OR_RETURN(const GgufTensor* t, file_.Tensor(m.tensor));
        const std::string* bytes = BytesOf(m, plan[g]);
        const std::vector<float> w = bytes != nullptr ? GgufDecodeAs(*t, *bytes) : GgufDecode(*t);
        std::copy(w.begin(), w.end(), m.matrix.weights);
      }
      now_[g] = plan[g];
    }
    return absl::OkStatus();
  }

  const Gguf& file_;
  host::Model& model_;
  const std::vector<int32_t>& tokens_;
  const SparsitySearchOptions& o_;
  std::vector<SparsityOperator> operators_;
  std::vector<int64_t> way_of_;  // an operator's, -1: dense
  std::vector<PrunedWeights> ways_;
  std::vector<Slot> groups_;
  std::vector<std::vector<double>> cost_;
  int64_t weights_ = 0;
  Plan dense_, now_;  // -1: the file's own weights
};

absl::Status CheckOptions(const host::Model& model, const SparsitySearchOptions& o) {
  if (std::find(std::begin(kSearchMethods), std::end(kSearchMethods), o.method) ==
      std::end(kSearchMethods))
    return absl::InvalidArgumentError(absl::StrCat(
        "search method '", o.method, "'; allowed: ", absl::StrJoin(kSearchMethods, ", ")));
  if (o.palette.size() < 2)
    return absl::InvalidArgumentError(absl::StrCat("search: a palette of ", o.palette.size(),
                                                   " sparse operators; allowed: two or more"));
  if (!(o.keep > 0 && o.keep <= 1))
    return absl::OutOfRangeError(absl::StrCat("search: a share of ", o.keep,
                                              " of the weights stays; allowed: above 0 to 1"));
  if (o.context < 2 || o.context > model.shape.context || o.documents < 1 || o.held_out < 1)
    return absl::OutOfRangeError(absl::StrCat(
        "search: ", o.documents, " documents of ", o.context, " tokens and ", o.held_out,
        " to report on; allowed: 1 or more of 2 to the model's context of ", model.shape.context));
  if (model.shape.experts > 0)
    return absl::UnimplementedError(
        absl::StrCat(o.model,
                     " is a Mixture of Experts, inside whose experts nothing is pruned; allowed: a "
                     "model without"));
  return absl::OkStatus();
}

// What is told of plans, each against the same uniform one.
class Reporter {
 public:
  Reporter(Sparse& sparse, const Documents& documents) : sparse_(sparse), documents_(documents) {}

  absl::StatusOr<SparsityPlan> Tell(const Plan& plan, int64_t evaluations) {
    SLUICE_ASSIGN_OR_RETURN(const auto searched, sparse_.Logs(plan, documents_.searched));
    SLUICE_ASSIGN_OR_RETURN(const auto held_out, HeldOut(plan));
    SparsityPlan p = Fill(searched, held_out);
    p.text = sparse_.Text(plan);
    p.kept = sparse_.Kept(plan);
    p.evaluations = evaluations;
    return p;
  }
  absl::StatusOr<SparsityPlan> TellDense() {
    SLUICE_ASSIGN_OR_RETURN(const auto searched,
                            sparse_.Logs(sparse_.dense(), documents_.searched));
    SLUICE_ASSIGN_OR_RETURN(const auto held_out,
                            sparse_.Logs(sparse_.dense(), documents_.held_out));
    SparsityPlan p = Fill(searched, held_out);
    p.text = "dense";
    p.kept = 1;
    return p;
  }
  // The best of the uniform plans that fit; what follows is told against it.
  absl::StatusOr<std::optional<SparsityPlan>> TellUniform(double budget) {
    std::optional<Plan> best;
    double least = INFINITY;
    for (int64_t k = 0; k < sparse_.operators(); ++k) {
      const Plan plan = sparse_.Everywhere(k);
      if (sparse_.Kept(plan) > budget * (1 + 1e-9)) continue;
      SLUICE_ASSIGN_OR_RETURN(const auto logs, sparse_.Logs(plan, documents_.searched));
      if (!(MeanOf(logs) < least)) continue;
      least = MeanOf(logs);
      best = plan;
    }
    if (!best.has_value()) return std::optional<SparsityPlan>();
    SLUICE_ASSIGN_OR_RETURN(SparsityPlan told, Tell(*best, 0));
    SLUICE_ASSIGN_OR_RETURN(uniform_, HeldOut(*best));
    return std::optional<SparsityPlan>(std::move(told));
  }
  // Mean log-likelihood of the held-out documents.
  absl::StatusOr<double> Quality(const Plan& plan) {
    SLUICE_ASSIGN_OR_RETURN(const auto logs, HeldOut(plan));
    return -MeanOf(logs);
  }

 private:
  absl::StatusOr<std::vector<double>> HeldOut(const Plan& plan) {
    const auto known = known_.find(plan);
    if (known != known_.end()) return known->second;
    SLUICE_ASSIGN_OR_RETURN(auto logs, sparse_.Logs(plan, documents_.held_out));
    return known_.emplace(plan, std::move(logs)).first->second;
  }
  SparsityPlan Fill(const std::vector<double>& searched, const std::vector<double>& held_out) {
    SparsityPlan p;
    p.searched = std::exp(MeanOf(searched));
    p.held_out = std::exp(MeanOf(held_out));
    if (uniform_.empty()) return p;
    std::vector<double> changes;
    for (size_t d = 0; d < held_out.size(); ++d) changes.push_back(held_out[d] - uniform_[d]);
    p.change = ChangeInterval(changes, CompareOptions{});
    return p;
  }

  Sparse& sparse_;
  const Documents& documents_;
  std::map<Plan, std::vector<double>> known_;
  std::vector<double> uniform_;
};

const SearchResult& Best(const std::vector<SearchResult>& of_seeds) {
  return *std::max_element(
      of_seeds.begin(), of_seeds.end(),
      [](const SearchResult& a, const SearchResult& b) { return a.quality < b.quality; });
}
}  // namespace

absl::StatusOr<SparsityOperator> ReadSparsityOperator(const std::string& text) {
  SparsityOperator op;
  op.text = text;
  if (text == "dense") return op;
  const size_t at = text.rfind('@');
  PruneOptions o;
  o.method = text.substr(0, at);
  const std::string what = at == std::string::npos ? "" : text.substr(at + 1);
  const auto wrong = [&](absl::string_view says) {
    return absl::InvalidArgumentError(
        absl::StrCat("operator '", text, "': ", says,
                     "; allowed: dense, or a pruner of weights and what goes, as wanda@0.6 (a "
                     "share of every row, above 0 to below 1) or wanda@2:4 (2 of every 4 stay)"));
  };
  const std::vector<std::string> pattern = absl::StrSplit(what, ':');
  double n = 0;
  double m = 0;
  if (pattern.size() == 2 && absl::SimpleAtod(pattern[0], &n) && absl::SimpleAtod(pattern[1], &m) &&
      m > 0) {
    o.pattern = what;
    o.sparsity = 1 - n / m;
  } else if (!absl::SimpleAtod(what, &o.sparsity) || !(o.sparsity > 0)) {
    return wrong(at == std::string::npos ? "nothing says what goes" : "no share and no pattern");
  }
  auto target = ReadPruneTarget(o);
  if (!target.ok()) return wrong(target.status().message());
  op.target = *target;
  auto stages = MakePruneStages(o);
  if (!stages.ok())
    return absl::Status(stages.status().code(),
                        absl::StrCat("operator '", text, "': ", stages.status().message()));
  op.stages = *std::move(stages);
  return op;
}

absl::StatusOr<SparsitySearch> SearchSparsity(host::Model& model,
                                              const std::vector<int32_t>& tokens,
                                              const SparsitySearchOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckOptions(model, o));
  std::vector<SparsityOperator> operators;
  for (const std::string& text : o.palette) {
    SLUICE_ASSIGN_OR_RETURN(operators.emplace_back(), ReadSparsityOperator(text));
  }
  SLUICE_ASSIGN_OR_RETURN(const Documents documents, Divide(o, std::ssize(tokens)));
  SLUICE_ASSIGN_OR_RETURN(const Gguf file, Gguf::Open(o.model));
  if (!o.out.empty()) {
    SLUICE_RETURN_IF_ERROR(CheckOtherFile(o.model, o.out));
    SLUICE_RETURN_IF_ERROR(CheckWritable(o.out));
  }

  Sparse sparse(file, model, tokens, o);
  SLUICE_RETURN_IF_ERROR(sparse.Prepare(std::move(operators), documents));
  SearchProblem problem;
  problem.cost = sparse.cost();
  problem.budget = o.keep;
  problem.quality = [&](const Plan& plan) -> absl::StatusOr<double> {
    SLUICE_ASSIGN_OR_RETURN(const auto logs, sparse.Logs(plan, documents.searched));
    return -MeanOf(logs);
  };
  SearchOptions s;
  s.evaluations = o.evaluations;
  s.seed = o.seed;
  s.progress = [&](int64_t done) {
    if (o.progress)
      o.progress("plans of a seed", static_cast<double>(done) / static_cast<double>(o.evaluations));
  };
  const auto method = static_cast<SearchMethod>(
      std::find(std::begin(kSearchMethods), std::end(kSearchMethods), o.method) -
      std::begin(kSearchMethods));

  SearchTrial trial;
  const bool alone = method == SearchMethod::kRandom || o.seeds < 2;
  if (alone) {
    SLUICE_ASSIGN_OR_RETURN(trial.found.emplace_back(), SearchPlan(problem, method, s));
  } else {
    SLUICE_ASSIGN_OR_RETURN(trial, TrySearch(problem, method, s, o.seeds));
  }

  SparsitySearch r;
  r.weights = sparse.weights();
  r.groups = std::ssize(sparse.cost());
  r.held_out = std::ssize(documents.held_out);
  Reporter report(sparse, documents);
  SLUICE_ASSIGN_OR_RETURN(r.uniform, report.TellUniform(o.keep));
  SLUICE_ASSIGN_OR_RETURN(r.dense, report.TellDense());
  const SearchResult& best = Best(trial.found);
  SLUICE_ASSIGN_OR_RETURN(r.found, report.Tell(best.plan, best.evaluations));
  if (!o.out.empty())
    SLUICE_RETURN_IF_ERROR(WithTensors(file, sparse.Tensors(best.plan)).Write(o.out));
  if (alone) return r;

  const SearchResult& random = Best(trial.random);
  SLUICE_ASSIGN_OR_RETURN(r.random, report.Tell(random.plan, random.evaluations));
  std::vector<double> found_quality;
  std::vector<double> random_quality;
  for (int64_t i = 0; i < o.seeds; ++i) {
    const auto seed = static_cast<size_t>(i);
    SLUICE_ASSIGN_OR_RETURN(found_quality.emplace_back(), report.Quality(trial.found[seed].plan));
    SLUICE_ASSIGN_OR_RETURN(random_quality.emplace_back(), report.Quality(trial.random[seed].plan));
  }
  r.verdict = VerdictText(trial.gains);
  r.held_out_verdict = VerdictText(JudgeSearch(found_quality, random_quality, o.seed));
  return r;
}
}  // namespace lab
SLUICE_END_NAMESPACE
