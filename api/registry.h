#ifndef SLUICE_API_REGISTRY_H_
#define SLUICE_API_REGISTRY_H_
// A value, not a singleton: fill it once, then share it const.
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "sluice/api/agent_router.h"
#include "sluice/api/attention_router.h"
#include "sluice/api/config.h"
#include "sluice/api/router.h"
#include "sluice/api/version.h"
#include "sluice/api/weight_source.h"

SLUICE_BEGIN_NAMESPACE
// Makes one method from text. `Base` is Router, AttentionRouter or AgentRouter.
template <class Base>
class Factory {
 public:
  virtual ~Factory() = default;
  virtual absl::string_view name() const = 0;
  virtual std::string Describe() const = 0;  // config help, one line a key
  virtual std::string FullBudget()
      const = 0;  // config text at which nothing is skipped; "" when there is none
  virtual absl::StatusOr<std::unique_ptr<const Base>> Create(absl::Span<const KeyValue>,
                                                             const WeightSource* weights) const = 0;
};

template <class Base, template <class> class Bridge, class R>
class FactoryOf final : public Factory<Base> {
 public:
  absl::string_view name() const override { return R::kName; }
  std::string Describe() const override { return DescribeConfig<typename R::Config>(); }
  std::string FullBudget() const override {
    if constexpr (requires { R::FullBudget(); }) return PrintConfig(R::FullBudget());
    return "";
  }
  absl::StatusOr<std::unique_ptr<const Base>> Create(absl::Span<const KeyValue> kvs,
                                                     const WeightSource* weights) const override {
    typename R::Config config;
    SLUICE_RETURN_IF_ERROR(ReadConfig(kvs, config));
    if constexpr (LearnedModel<R>) {
      if (weights == nullptr)
        return absl::FailedPreconditionError("needs trained weights and got none");
      SLUICE_ASSIGN_OR_RETURN(R r, R::Create(config, *weights));
      return std::make_unique<const Bridge<R>>(std::move(r));
    } else {
      SLUICE_ASSIGN_OR_RETURN(R r, R::Create(config));
      return std::make_unique<const Bridge<R>>(std::move(r));
    }
  }
};

template <class Base>
class FactoryMap {
 public:
  absl::Status Add(std::unique_ptr<const Factory<Base>> f) {
    std::string key(f->name());
    if (!map_.emplace(key, std::move(f)).second)
      return absl::AlreadyExistsError(absl::StrCat("'", key, "' is registered twice"));
    return absl::OkStatus();
  }
  // From "name:key=value,...". `weights`: for learned methods, read during the call only.
  absl::StatusOr<std::unique_ptr<const Base>> Create(absl::string_view spec_text,
                                                     const WeightSource* weights = nullptr) const {
    SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(spec_text));
    auto it = map_.find(std::string(spec.name));
    if (it == map_.end()) {
      std::string known;
      for (const auto& [name, factory] : map_)
        absl::StrAppend(&known, known.empty() ? "" : ", ", name);
      return absl::NotFoundError(absl::StrCat("no method '", spec.name, "'; known: ", known));
    }
    absl::StatusOr<std::unique_ptr<const Base>> made = it->second->Create(spec.options, weights);
    if (!made.ok())
      return absl::Status(made.status().code(),
                          absl::StrCat(spec.name, ": ", made.status().message()));
    return made;
  }
  auto begin() const { return map_.begin(); }
  auto end() const { return map_.end(); }
  size_t size() const { return map_.size(); }

 private:
  std::map<std::string, std::unique_ptr<const Factory<Base>>> map_;
};

struct Registry {
  FactoryMap<Router> routers;
  FactoryMap<AttentionRouter> attention;
  FactoryMap<AgentRouter> agents;

  template <class R>
  absl::Status Add() {
    if constexpr (AttentionRouterModel<R>) {
      return attention.Add(
          std::make_unique<const FactoryOf<AttentionRouter, AttentionRouterOf, R>>());
    } else if constexpr (AgentRouterModel<R>) {
      return agents.Add(std::make_unique<const FactoryOf<AgentRouter, AgentRouterOf, R>>());
    } else {
      static_assert(RouterModel<R>,
                    "R satisfies none of RouterModel, AttentionRouterModel and AgentRouterModel");
      return routers.Add(std::make_unique<const FactoryOf<Router, RouterOf, R>>());
    }
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_REGISTRY_H_
