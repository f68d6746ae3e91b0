#ifndef SLUICE_POLICIES_COMPOSE_REUSE_H_
#define SLUICE_POLICIES_COMPOSE_REUSE_H_
// REUSE of plans: across layers, as IndexCache (arXiv 2603.12201) shares DSA's index, and across
// decode steps, as InfiniteHiP (arXiv 2502.08910) refreshes its stages. The session lends a plan a
// layer.
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "sluice/policies/compose/composed.h"

SLUICE_BEGIN_NAMESPACE
// What both kinds have alike: one inner router, whose state follows a header in the layer's block.
class ReusingAttention : public AttentionRouter {
 public:
  ReusingAttention(std::string name, std::unique_ptr<const AttentionRouter> inner)
      : name_(std::move(name)), inner_(std::move(inner)) {
    traits_ = CombineTraits(name_.c_str(), {inner_.get()});
    traits_.chunk_invariant = inner_->traits().chunk_invariant;
  }
  const AttentionTraits& traits() const override { return traits_; }

  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const AttentionShape& shape) const override {
    SLUICE_ASSIGN_OR_RETURN(auto made, inner_->MakePlan(shape));
    auto plan = std::make_unique<PlanOf>();
    plan->all = made->info();
    plan->all.state_bytes = AlignedBytes(sizeof(Header)) + AlignedBytes(made->info().state_bytes);
    plan->all.keeps_plans = true;
    for (int i = 0; i < plan->all.layout.num_branches; ++i) {
      BranchLayout& b = plan->all.layout.branches[i];
      if (b.entry_slots > 0) b.entry_slots += extra_slots();
      if (b.token_slots > 0) b.token_slots += extra_slots();
    }
    plan->inner = std::move(made);
    return plan;
  }
  void Truncate(const Plan& p, RouterState& state, int64_t keys) const override {
    RouterState own = Inner(state);
    inner_->Truncate(*static_cast<const PlanOf&>(p).inner, own, keys);
    Head(state).keys = own.keys;
    Head(state).age = -1;  // the kept list may name keys that are gone
    state.keys = std::min(state.keys, keys);
  }
  const AttentionRouter& Serving(int64_t layer, int64_t keys) const override {
    return inner_->Serving(layer, keys);
  }

 protected:
  struct Header {
    int64_t keys = 0;  // that the inner state speaks of
    int64_t age = 0;   // steps since the kept plan was made, plus 1; 0 or less: none is kept
  };
  struct PlanOf final : Plan {
    const AttentionPlanInfo& info() const override { return all; }
    AttentionPlanInfo all;
    std::unique_ptr<const Plan> inner;
  };
  virtual int64_t extra_slots() const { return 0; }
  static Header& Head(const RouterState& s) { return *reinterpret_cast<Header*>(s.layer); }
  static RouterState Inner(const RouterState& s) {
    return {s.layer + AlignedBytes(sizeof(Header)), s.sequence, Head(s).keys};
  }
  absl::Status RunInner(const Plan& p, const AttentionInputs& in, RouterState& state,
                        const RunContext& ctx, PlanBuilder& out) const {
    RouterState own = Inner(state);
    const absl::Status s = inner_->Run(*static_cast<const PlanOf&>(p).inner, in, own, ctx, out);
    Head(state).keys = own.keys;
    if (s.ok()) state.keys = in.kv_len();
    return s;
  }
  absl::StatusOr<PlanBuilder*> Kept(const RunContext& ctx, int64_t layer) const {
    PlanBuilder* kept = ctx.plans != nullptr && layer >= 0 ? ctx.plans->Kept(layer) : nullptr;
    if (kept == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat(name_, ": the host lends no earlier plan of layer ", layer));
    }
    return kept;
  }

  std::string name_;
  std::unique_ptr<const AttentionRouter> inner_;
  AttentionTraits traits_;
};

// cross_layer(FSSS | router): layers marked F run the router, those marked S take the plan of the
// nearest F before them, as it is. The pattern repeats.
class CrossLayer final : public ReusingAttention {
 public:
  CrossLayer(std::string name, std::string pattern, std::unique_ptr<const AttentionRouter> inner)
      : ReusingAttention(std::move(name), std::move(inner)), pattern_(std::move(pattern)) {}

  absl::Status Run(const Plan& p, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const override {
    const int64_t source = Source(in.layer);
    SLUICE_ASSIGN_OR_RETURN(PlanBuilder * kept, Kept(ctx, source));
    if (source == in.layer) {
      SLUICE_RETURN_IF_ERROR(RunInner(p, in, state, ctx, *kept));
    } else {
      const sluice_attention_plan& r = *kept->record();
      if (r.q_begin != in.q_begin || r.q_count != in.q.rows || r.kv_len != in.kv_len()) {
        return absl::FailedPreconditionError(absl::StrCat(name_, ": layer ", in.layer,
                                                          " wants the plan of layer ", source,
                                                          ", which has not run for these queries"));
      }
      state.keys = in.kv_len();
    }
    out.Borrow(*kept);
    return absl::OkStatus();
  }

 private:
  int64_t Source(int64_t layer) const {
    const auto n = static_cast<int64_t>(pattern_.size());
    while (layer > 0 && pattern_[layer % n] == 'S') --layer;
    return layer;
  }
  std::string pattern_;
};

// refresh(every | router): a decode step takes the list of the last planned step, extended by the
// keys since; every so many steps it is planned anew. Prompts are always planned. refresh(1 | r) is
// r.
class Refresh final : public ReusingAttention {
 public:
  Refresh(std::string name, int64_t every, std::unique_ptr<const AttentionRouter> inner)
      : ReusingAttention(std::move(name), std::move(inner)), every_(every) {
    traits_.token_causal = traits_.token_causal && every_ == 1;
  }

  absl::Status Run(const Plan& p, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const override {
    if (in.q.rows != 1) {
      Head(state).age = 0;
      return RunInner(p, in, state, ctx, out);
    }
    SLUICE_ASSIGN_OR_RETURN(PlanBuilder * kept, Kept(ctx, in.layer));
    Header& head = Head(state);
    const bool follows = kept->record()->kv_len == state.keys && in.kv_len() == state.keys + 1;
    if (head.age > 0 && head.age < every_ && follows) {
      SLUICE_RETURN_IF_ERROR(kept->Extend(in.kv_len()));
      ++head.age;
      state.keys = in.kv_len();
    } else {
      SLUICE_RETURN_IF_ERROR(RunInner(p, in, state, ctx, *kept));
      Head(state).age = 1;
    }
    out.Borrow(*kept);
    return absl::OkStatus();
  }

 private:
  int64_t extra_slots() const override { return every_; }
  int64_t every_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_COMPOSE_REUSE_H_
