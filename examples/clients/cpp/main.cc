// Routes one query and tells how it ended. Usage: example_client [ENDPOINT]
#include <cstdio>

#include "sluice/runtime/service/client.h"
#include "sluice/runtime/service/endpoint.h"

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

int main(int argc, char** argv) {
  auto client = sluice::Client::Connect(argc > 1 ? argv[1] : sluice::DefaultEndpoint());
  if (!client.ok()) return Fail(client.status());

  sluice::v1::Query query;
  query.set_task("math");
  const auto decision = (*client)->Route(query);
  if (!decision.ok()) return Fail(decision.status());
  for (const std::string& agent : decision->agents()) std::printf("%s\n", agent.c_str());

  // ... ask these agents, judge the answer ...
  sluice::v1::Outcome outcome;
  outcome.set_receipt(decision->receipt());
  outcome.set_quality(1);
  outcome.set_cost_usd(0.004);
  outcome.set_latency_s(2.1);
  const auto result =
      (*client)->Feedback(outcome);  // returns once it is kept; sending it again is harmless
  if (!result.ok()) return Fail(result.status());
  std::printf("%s\n", result->status() == sluice::v1::FeedbackResult::APPLIED
                          ? "learned"
                          : result->reason().c_str());
  return 0;
}
