// What the sidecar writes by itself in place of the message objects: the same as theirs.
#include "sluice/runtime/service/answers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/service/best_candidates.h"
#include "sluice/runtime/service/wire.h"

SLUICE_BEGIN_NAMESPACE
namespace answers_test {
// A decision with agents of names of `length` bytes, its fallbacks, and what protobuf makes of it.
struct Case {
  std::vector<std::unique_ptr<AgentField>> fields;
  std::string policy, receipt;
  Answers::Decision told;
  v1::Decision wanted;

  Case(int stages, size_t fallbacks, size_t length, uint64_t id, bool kept) {
    policy.assign(length, 'p');
    receipt.assign(length / 2, '\x80');
    told.id = id;
    told.propensity = 0.125 * stages;
    told.kept = kept;
    told.policy = policy;
    told.receipt = receipt;
    told.stages = stages;
    wanted.set_id(id);
    wanted.set_propensity(told.propensity);
    wanted.set_kept(kept);
    wanted.set_policy(policy);
    wanted.set_receipt(receipt);
    for (int s = 0; s < stages; ++s) {
      Answers::Stage& to = told.of[static_cast<size_t>(s)];
      to.agent = Name(length, s, wanted.add_agents());
      to.num_fallbacks = fallbacks;
      v1::Fallbacks& others = *wanted.add_fallbacks();
      for (size_t k = 0; k < fallbacks; ++k)
        to.fallbacks[k] = Name(length, 100 * s + static_cast<int>(k), others.add_agents());
    }
  }
  const AgentField* Name(size_t length, int number, std::string* into) {
    *into = absl::StrCat(number, std::string(length, 'n'));
    fields.push_back(std::make_unique<AgentField>(*into));
    return fields.back().get();
  }
};

TEST(Answers, AreTheBytesThatProtobufWrites) {
  Answers answers;
  v1::RouteResponse wanted;
  for (int stages : {1, 3, kMaxStages}) {
    for (size_t fallbacks : {0, 1, 3}) {
      for (size_t length : {2, 28, 29, 30, 31, 100, 126, 127, 128, 300, 17000}) {
        for (uint64_t id : {uint64_t{1}, uint64_t{127}, uint64_t{128}, ~uint64_t{0}}) {
          Case c(stages, fallbacks, length, id, length % 2 == 0);
          answers.Add(c.told);
          *wanted.add_decisions() = c.wanted;
        }
      }
    }
  }
  v1::Decision refused;
  refused.mutable_error()->set_text("nobody is left");
  refused.mutable_error()->set_retry_after_s(2.5);
  answers.Add(refused);
  *wanted.add_decisions() = refused;
  v1::RouteResponse read;
  ASSERT_TRUE(
      read.ParseFromArray(answers.bytes().data(), static_cast<int>(answers.bytes().size())));
  ASSERT_EQ(read.decisions_size(), wanted.decisions_size());
  EXPECT_EQ(answers.bytes(), wanted.SerializeAsString());
}
TEST(Answers, BeginAnew) {
  Answers answers;
  const Case large(8, 3, 100000, 1, false), small(1, 1, 3, 2, true);
  answers.Add(large.told);
  answers.Clear();
  EXPECT_EQ(answers.bytes(), "");
  answers.Add(small.told);
  v1::RouteResponse wanted;
  *wanted.add_decisions() = small.wanted;
  EXPECT_EQ(answers.bytes(), wanted.SerializeAsString());
}
TEST(Wire, VarintsOfEveryLength) {
  for (int bit = 0; bit < 64; ++bit) {
    for (uint64_t v : {(uint64_t{1} << bit) - 1, uint64_t{1} << bit}) {
      char to[wire::kMaxVarint + 8];
      const auto n = static_cast<size_t>(wire::PutVarint(v, to) - to);
      EXPECT_EQ(n, wire::VarintSize(v)) << v;
      v1::Decision d;  // a field of one byte, then the number
      std::string bytes(1, wire::Tag(v1::Decision::kIdFieldNumber, wire::kVarint));
      ASSERT_TRUE(d.ParseFromString(bytes.append(to, n)));
      EXPECT_EQ(d.id(), v);
    }
  }
}

// By sorting, from the rule as it is said.
std::vector<int32_t> Sorted(std::vector<AgentCandidate> all) {
  std::erase_if(all, [](const AgentCandidate& c) { return c.chosen || c.block != Block::kNone; });
  std::stable_sort(all.begin(), all.end(), [](const AgentCandidate& a, const AgentCandidate& b) {
    const float low = -std::numeric_limits<float>::infinity();
    const float pa = a.p > 0 ? a.p : 0, pb = b.p > 0 ? b.p : 0;
    if (pa != pb) return pa > pb;
    if (std::isnan(a.eta) != std::isnan(b.eta)) return std::isnan(b.eta);
    return (std::isnan(a.eta) ? low : a.eta) > (std::isnan(b.eta) ? low : b.eta);
  });
  std::vector<int32_t> best;
  for (const AgentCandidate& c : all) best.push_back(c.agent);
  best.resize(std::min(best.size(), BestCandidates::kMost));
  return best;
}
TEST(BestCandidates, AreThoseThatSortingFinds) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float ps[] = {0, -0.0F, 1e-30F, 0.25F, 0.5F, 1, std::nanf("")};
  const float etas[] = {0, -0.0F, 1e-30F, -1e-30F, 0.5F, 2, -2, -3, kInf, -kInf, std::nanf("")};
  BestCandidates best;
  std::mt19937 random(5);
  const auto one_of = [&](const auto& from) { return from[random() % std::size(from)]; };
  for (int i = 0; i < 20000; ++i) {
    std::vector<AgentCandidate> all(random() % 13);
    for (size_t a = 0; a < all.size(); ++a) {
      AgentCandidate& c = all[a];
      c.agent = static_cast<int32_t>(a) + 7;
      c.p = one_of(ps);
      c.eta = one_of(etas);
      c.chosen = random() % 8 == 0;
      c.block = static_cast<Block>(std::max<int>(0, static_cast<int>(random() % 12) - 7));
    }
    best.Find(all);
    std::vector<int32_t> found;
    for (size_t k = 0; k < best.size(); ++k) found.push_back(best.agent(k));
    ASSERT_EQ(found, Sorted(all)) << i;
  }
}
}  // namespace answers_test
SLUICE_END_NAMESPACE
