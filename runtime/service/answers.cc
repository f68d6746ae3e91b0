#include "sluice/runtime/service/answers.h"

#include <algorithm>

#include "sluice/runtime/service/wire.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using D = v1::Decision;
constexpr char kAnswer = wire::Tag(v1::RouteResponse::kDecisionsFieldNumber, wire::kBytes);
constexpr char kId = wire::Tag(D::kIdFieldNumber, wire::kVarint);
constexpr char kAgent = wire::Tag(D::kAgentsFieldNumber, wire::kBytes);
constexpr char kPropensity = wire::Tag(D::kPropensityFieldNumber, wire::kFixed64);
constexpr char kPolicy = wire::Tag(D::kPolicyFieldNumber, wire::kBytes);
constexpr char kReceipt = wire::Tag(D::kReceiptFieldNumber, wire::kBytes);
constexpr char kFallbacks = wire::Tag(D::kFallbacksFieldNumber, wire::kBytes);
constexpr char kKept = wire::Tag(D::kKeptFieldNumber, wire::kVarint);
constexpr char kFallback = wire::Tag(v1::Fallbacks::kAgentsFieldNumber, wire::kBytes);

size_t SizeOfFallbacks(const Answers::Stage& s) {
  size_t n = s.num_fallbacks;  // a tag each
  for (size_t i = 0; i < s.num_fallbacks; ++i) n += s.fallbacks[i]->size();
  return n;
}
}  // namespace

AgentField::AgentField(absl::string_view id) : size_(wire::BytesSize(id.size())) {
  long_.resize(size_);
  wire::PutBytes(id, long_.data());
  std::copy_n(long_.data(), std::min(size_, kSlack), short_.data());
}

void Answers::Clear() {
  if (bytes_.size() > kMostKept) bytes_ = std::string();
  size_ = 0;
}

char* Answers::Grow(size_t more) {
  const size_t wanted = size_ + more + AgentField::kSlack;
  if (bytes_.size() < wanted) bytes_.resize(std::max(wanted, 2 * bytes_.size()));
  char* at = &bytes_[size_];
  size_ += more;
  return at;
}

void Answers::Add(const Decision& d) {
  std::array<size_t, kMaxStages> fallbacks{};
  size_t n = 1 + wire::VarintSize(d.id);
  n += 1 + sizeof d.propensity;
  n += 1 + wire::BytesSize(d.policy.size());
  n += 1 + wire::BytesSize(d.receipt.size());
  if (d.kept) n += 2;
  for (int s = 0; s < d.stages; ++s) {
    const auto i = static_cast<size_t>(s);
    fallbacks[i] = SizeOfFallbacks(d.of[i]);
    n += 1 + d.of[i].agent->size();
    n += 1 + wire::BytesSize(fallbacks[i]);
  }
  char* to = Grow(1 + wire::BytesSize(n));
  *to++ = kAnswer;
  to = wire::PutVarint(n, to);

  *to++ = kId;
  to = wire::PutVarint(d.id, to);
  for (int s = 0; s < d.stages; ++s) {
    *to++ = kAgent;
    to = d.of[static_cast<size_t>(s)].agent->Put(to);
  }
  *to++ = kPropensity;
  to = wire::PutDouble(d.propensity, to);
  *to++ = kPolicy;
  to = wire::PutBytes(d.policy, to);
  *to++ = kReceipt;
  to = wire::PutBytes(d.receipt, to);
  for (int s = 0; s < d.stages; ++s) {
    const Stage& stage = d.of[static_cast<size_t>(s)];
    *to++ = kFallbacks;
    to = wire::PutVarint(fallbacks[static_cast<size_t>(s)], to);
    for (size_t i = 0; i < stage.num_fallbacks; ++i) {
      *to++ = kFallback;
      to = stage.fallbacks[i]->Put(to);
    }
  }
  if (!d.kept) return;
  *to++ = kKept;
  *to = 1;
}

void Answers::Add(const v1::Decision& d) {
  const size_t n = d.ByteSizeLong();
  char* to = Grow(1 + wire::BytesSize(n));
  *to++ = kAnswer;
  to = wire::PutVarint(n, to);
  d.SerializeWithCachedSizesToArray(reinterpret_cast<uint8_t*>(to));
}
SLUICE_END_NAMESPACE
