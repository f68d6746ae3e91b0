#ifndef SLUICE_POLICIES_COMPOSE_ATTENTION_H_
#define SLUICE_POLICIES_COMPOSE_ATTENTION_H_
// Attention routers made of attention routers, as text:
//   fallback(hip:mask_k=512 | dense)             the first that takes the call
//   cascade(dense<=2048 | mean_pool:k=16)        by length: the first whose limit the prompt keeps
//   to per_layer(2*dense | 6*mean_pool:k=16)        by layer; the last one serves all further
//   layers
// They nest. The parts keep states of their own side by side in the caller's block.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "sluice/api/registry.h"

SLUICE_BEGIN_NAMESPACE
class ComposedAttention final : public AttentionRouter {
 public:
  enum class Rule : uint8_t { kFallback, kCascade, kPerLayer };
  struct Part {
    std::unique_ptr<const AttentionRouter> router;
    int64_t limit = 0;  // kCascade: keys up to which it serves, 0: any; kPerLayer: layers
  };
  ComposedAttention(std::string name, Rule rule, std::vector<Part> parts)
      : name_(std::move(name)), rule_(rule), parts_(std::move(parts)) {}

  absl::string_view name() const override { return name_; }
  bool token_causal() const override {
    // A cascade looks at the prompt's length, which no query's past tells.
    return rule_ != Rule::kCascade && std::all_of(parts_.begin(), parts_.end(), [](const Part& p) {
             return p.router->token_causal();
           });
  }
  bool needs_pre_rope() const override {
    return std::any_of(parts_.begin(), parts_.end(),
                       [](const Part& p) { return p.router->needs_pre_rope(); });
  }
  // Scratch of the neediest part, states of all. A part of a fallback that refuses the shape is
  // left out.
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const AttentionShape& shape) const override {
    auto plan = std::make_unique<PlanOf>();
    plan->all.shape = shape;
    absl::Status refused;
    for (const Part& p : parts_) {
      auto made = p.router->MakePlan(shape);
      plan->state.push_back(plan->all.state_bytes);
      if (!made.ok()) {
        refused = made.status();
        if (rule_ != Rule::kFallback) return refused;
        plan->parts.push_back(nullptr);
        continue;
      }
      const AttentionPlanInfo& i = (*made)->info();
      AttentionPlanInfo& all = plan->all;
      all.workspace_bytes = std::max(all.workspace_bytes, i.workspace_bytes);
      all.state_bytes += (i.state_bytes + kWorkspaceAlign - 1) / kWorkspaceAlign * kWorkspaceAlign;
      all.max_rows = std::max(all.max_rows, i.max_rows);
      all.entry_slots = std::max(all.entry_slots, i.entry_slots);
      all.token_slots = std::max(all.token_slots, i.token_slots);
      all.prefix_slots = std::max(all.prefix_slots, i.prefix_slots);
      plan->parts.push_back(*std::move(made));
    }
    if (std::all_of(plan->parts.begin(), plan->parts.end(),
                    [](const auto& p) { return p == nullptr; }))
      return refused;
    return plan;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte* state,
                   const RunContext& ctx, PlanWriter& out) const override {
    const auto& plan = static_cast<const PlanOf&>(p);
    const auto run = [&](size_t i) {
      return parts_[i].router->Run(*plan.parts[i], in, state + plan.state[i], ctx, out);
    };
    switch (rule_) {
      case Rule::kFallback: {
        absl::Status last;
        for (size_t i = 0; i < parts_.size(); ++i) {
          if (plan.parts[i] == nullptr) continue;
          last = run(i);
          if (last.ok()) return last;
        }
        return last;
      }
      case Rule::kPerLayer:
        if (in.layer < 0)
          return absl::FailedPreconditionError(
              absl::StrCat(name_, ": the host does not say which layer this is"));
        break;
      case Rule::kCascade:
        break;
    }
    return run(PartFor(in.layer, std::max(in.kv_len(), in.prompt_end)));
  }
  // The part that serves a layer and length; of a fallback, the first.
  const AttentionRouter& Serving(int64_t layer, int64_t length) const {
    return *parts_[PartFor(layer, length)].router;
  }

 private:
  struct PlanOf final : Plan {
    const AttentionPlanInfo& info() const override { return all; }
    AttentionPlanInfo all;
    std::vector<std::unique_ptr<const Plan>> parts;
    std::vector<size_t> state;  // where each part's begins
  };
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
};
// The router, no composition, that serves a layer over so many keys.
inline const AttentionRouter& ServingRouter(const AttentionRouter& r, int64_t layer, int64_t keys) {
  const auto* composed = dynamic_cast<const ComposedAttention*>(&r);
  return composed != nullptr ? ServingRouter(composed->Serving(layer, keys), layer, keys) : r;
}

// A router's spec or a composition of them.
inline absl::StatusOr<std::unique_ptr<const AttentionRouter>> MakeAttentionPolicy(
    absl::string_view text, const FactoryMap<AttentionRouter>& routers) {
  constexpr int kMaxDepth = 8;
  const auto make = [&](const auto& self, absl::string_view t,
                        int depth) -> absl::StatusOr<std::unique_ptr<const AttentionRouter>> {
    t = absl::StripAsciiWhitespace(t);
    const size_t open = t.find('(');
    if (open == absl::string_view::npos) return routers.Create(t);
    const auto bad = [&](auto&&... why) {
      return absl::InvalidArgumentError(absl::StrCat("'", t, "': ", why...));
    };
    if (t.back() != ')') return bad("the last parenthesis is missing, or text follows it");
    if (depth >= kMaxDepth) return bad("nested deeper than ", kMaxDepth);
    const absl::string_view name = absl::StripAsciiWhitespace(t.substr(0, open));
    using Rule = ComposedAttention::Rule;
    Rule rule;
    if (name == "fallback")
      rule = Rule::kFallback;
    else if (name == "cascade")
      rule = Rule::kCascade;
    else if (name == "per_layer")
      rule = Rule::kPerLayer;
    else
      return bad("no composition '", name, "'; known: cascade, fallback, per_layer");
    std::vector<absl::string_view> texts;
    const absl::string_view inner = t.substr(open + 1, t.size() - open - 2);
    int level = 0;
    size_t from = 0;
    for (size_t i = 0; i <= inner.size(); ++i) {
      if (i < inner.size() && inner[i] == '(') ++level;
      if (i < inner.size() && inner[i] == ')' && --level < 0)
        return bad("parentheses do not match");
      if (i == inner.size() || (inner[i] == '|' && level == 0)) {
        texts.push_back(absl::StripAsciiWhitespace(inner.substr(from, i - from)));
        from = i + 1;
      }
    }
    if (level != 0) return bad("parentheses do not match");
    std::vector<ComposedAttention::Part> parts;
    for (size_t i = 0; i < texts.size(); ++i) {
      absl::string_view part = texts[i];
      const bool last = i + 1 == texts.size();
      int64_t limit = 0;
      if (rule == Rule::kCascade) {
        const size_t at = part.rfind("<=");
        const bool mine =
            at != absl::string_view::npos && part.find(')', at) == absl::string_view::npos;
        if (mine != !last)
          return bad("every part but the last says up to which length it serves: ROUTER<=KEYS");
        if (mine && (!absl::SimpleAtoi(part.substr(at + 2), &limit) || limit <= 0 ||
                     (!parts.empty() && limit <= parts.back().limit)))
          return bad("'", part.substr(at), "' is no length above those before it");
        if (mine) part = part.substr(0, at);
      } else if (rule == Rule::kPerLayer) {
        const size_t at = part.find('*');
        const bool mine =
            at != absl::string_view::npos && at < std::min(part.find('('), part.find(':'));
        limit = 1;
        if (mine && (!absl::SimpleAtoi(absl::StripAsciiWhitespace(part.substr(0, at)), &limit) ||
                     limit <= 0))
          return bad("'", part, "' is not N*ROUTER with N of at least 1");
        if (mine) part = part.substr(at + 1);
      }
      auto made = self(self, part, depth + 1);
      if (!made.ok()) return made.status();
      parts.push_back({*std::move(made), limit});
    }
    return std::make_unique<const ComposedAttention>(std::string(t), rule, std::move(parts));
  };
  return make(make, text, 0);
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_COMPOSE_ATTENTION_H_
