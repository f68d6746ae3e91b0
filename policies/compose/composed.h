#ifndef SLUICE_POLICIES_COMPOSE_COMPOSED_H_
#define SLUICE_POLICIES_COMPOSE_COMPOSED_H_
// An attention router that asks one of several: by whether it takes the call, by length or by
// layer. The parts keep states of their own side by side in the caller's blocks.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/registry.h"

SLUICE_BEGIN_NAMESPACE
// What a composition asks for: whatever any part does; and promises: what all do.
inline AttentionTraits CombineTraits(const char* name,
                                     const std::vector<const AttentionRouter*>& parts) {
  AttentionTraits all = {
      .name = name, .token_causal = true, .chunk_invariant = true, .scattered_queries = true};
  for (const AttentionRouter* part : parts) {
    const AttentionTraits& t = part->traits();
    all.exact_at_full_budget = all.exact_at_full_budget && t.exact_at_full_budget;
    all.token_causal = all.token_causal && t.token_causal;
    all.chunk_invariant = all.chunk_invariant && t.chunk_invariant;
    all.scattered_queries = all.scattered_queries && t.scattered_queries;
    all.bidirectional = all.bidirectional || t.bidirectional;
    all.reads_pre_rope = all.reads_pre_rope || t.reads_pre_rope;
    all.reads_index = all.reads_index || t.reads_index;
    all.reads_values = all.reads_values || t.reads_values;
    all.reads_hidden = all.reads_hidden || t.reads_hidden;
    all.feedback |= t.feedback;
    all.stages = std::max(all.stages, t.stages);
  }
  return all;
}
inline size_t AlignedBytes(size_t n) {
  return (n + kWorkspaceAlign - 1) / kWorkspaceAlign * kWorkspaceAlign;
}

class ComposedAttention final : public AttentionRouter {
 public:
  enum class Rule : uint8_t { kFallback, kCascade, kPerLayer };
  struct Part {
    std::unique_ptr<const AttentionRouter> router;
    int64_t limit = 0;  // kCascade: keys up to which it serves, 0: any; kPerLayer: layers
  };
  ComposedAttention(std::string name, Rule rule, std::vector<Part> parts)
      : name_(std::move(name)), rule_(rule), parts_(std::move(parts)) {
    std::vector<const AttentionRouter*> routers;
    for (const Part& p : parts_) routers.push_back(p.router.get());
    traits_ = CombineTraits(name_.c_str(), routers);
    // A cascade looks at the prompt's length, which no query's past tells.
    if (rule_ == Rule::kCascade) traits_.token_causal = false;
  }
  const AttentionTraits& traits() const override { return traits_; }

  // Scratch of the neediest part, states of all. A part of a fallback that refuses the shape is
  // left out.
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const AttentionShape& shape) const override {
    auto plan = std::make_unique<PlanOf>();
    AttentionPlanInfo& all = plan->all;
    all.shape = shape;
    all.state_bytes = AlignedBytes((parts_.size() + 1) * sizeof(int64_t));
    absl::Status refused;
    bool any = false;
    for (const Part& p : parts_) {
      auto made = p.router->MakePlan(shape);
      plan->state.push_back(all.state_bytes);
      plan->sequence.push_back(all.sequence_bytes);
      if (!made.ok()) {
        refused = made.status();
        if (rule_ != Rule::kFallback) return refused;
        plan->parts.push_back(nullptr);
        continue;
      }
      const AttentionPlanInfo& i = (*made)->info();
      all.workspace_bytes = std::max(all.workspace_bytes, i.workspace_bytes);
      all.state_bytes += AlignedBytes(i.state_bytes);
      all.sequence_bytes += AlignedBytes(i.sequence_bytes);
      all.keeps_plans = all.keeps_plans || i.keeps_plans;
      all.layout.Cover(i.layout);
      plan->parts.push_back(*std::move(made));
      any = true;
    }
    if (!any) return refused;
    return plan;
  }

  absl::Status Run(const Plan& p, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const override {
    const auto& plan = static_cast<const PlanOf&>(p);
    if (rule_ == Rule::kPerLayer && in.layer < 0)
      return absl::FailedPreconditionError(
          absl::StrCat(name_, ": the host does not say which layer this is"));
    size_t first = PartFor(in.layer, std::max(in.kv_len(), in.prompt_end));
    absl::Status last;
    for (size_t i = first; i < parts_.size(); ++i) {
      if (plan.parts[i] == nullptr) continue;
      RouterState own = PartState(plan, state, i);
      last = parts_[i].router->Run(*plan.parts[i], in, own, ctx, out);
      if (last.ok()) {
        Keys(state)[i] = own.keys;
        Keys(state)[parts_.size()] = static_cast<int64_t>(i);
        state.keys = in.kv_len();
      }
      if (last.ok() || rule_ != Rule::kFallback) break;
    }
    return last;
  }
  absl::Status Observe(const Plan& p, const AttentionFeedback& f,
                       RouterState& state) const override {
    const auto& plan = static_cast<const PlanOf&>(p);
    const auto i = static_cast<size_t>(Keys(state)[parts_.size()]);
    if (parts_[i].router->traits().feedback == 0) return absl::OkStatus();
    RouterState own = PartState(plan, state, i);
    return parts_[i].router->Observe(*plan.parts[i], f, own);
  }
  void Truncate(const Plan& p, RouterState& state, int64_t keys) const override {
    const auto& plan = static_cast<const PlanOf&>(p);
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (plan.parts[i] == nullptr) continue;
      RouterState own = PartState(plan, state, i);
      parts_[i].router->Truncate(*plan.parts[i], own, keys);
      Keys(state)[i] = own.keys;
    }
    state.keys = std::min(state.keys, keys);
  }
  const AttentionRouter& Serving(int64_t layer, int64_t keys) const override {
    return parts_[PartFor(layer, keys)].router->Serving(layer, keys);
  }

 private:
  struct PlanOf final : Plan {
    const AttentionPlanInfo& info() const override { return all; }
    AttentionPlanInfo all;
    std::vector<std::unique_ptr<const Plan>> parts;
    std::vector<size_t> state, sequence;  // where each part's begins
  };
  // The layer's block begins with how many keys each part speaks of, and which part ran last.
  static int64_t* Keys(const RouterState& s) { return reinterpret_cast<int64_t*>(s.layer); }
  static RouterState PartState(const PlanOf& plan, const RouterState& s, size_t i) {
    return {s.layer + plan.state[i], s.sequence + plan.sequence[i], Keys(s)[i]};
  }
  size_t PartFor(int64_t layer, int64_t length) const {
    size_t i = 0;
    if (rule_ == Rule::kCascade) {
      while (i + 1 < parts_.size() && length > parts_[i].limit) ++i;
    } else if (rule_ == Rule::kPerLayer) {
      while (i + 1 < parts_.size() && layer >= parts_[i].limit) layer -= parts_[i++].limit;
    }
    return i;
  }

  std::string name_;
  Rule rule_;
  std::vector<Part> parts_;
  AttentionTraits traits_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_COMPOSE_COMPOSED_H_
