#ifndef SLUICE_TESTS_SUPPORT_ASK_SERVER_H_
#define SLUICE_TESTS_SUPPORT_ASK_SERVER_H_
// What tests ask of a running sidecar, again and again.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "sluice/runtime/service/client.h"

SLUICE_BEGIN_NAMESPACE
inline v1::Query Task(const std::string& task) {
  v1::Query q;
  q.set_task(task);
  return q;
}
inline v1::Query Math() { return Task("math"); }
inline v1::Response Ask(Client& c, const std::function<void(v1::Request&)>& fill) {
  v1::Request q;
  fill(q);
  const auto r = c.Call(q);
  EXPECT_TRUE(r.ok()) << r.status();
  return r.ok() ? *r : v1::Response();
}
inline v1::StatsResponse StatsOf(Client& c) {
  return Ask(c, [](v1::Request& q) { q.mutable_stats(); }).stats();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_ASK_SERVER_H_
