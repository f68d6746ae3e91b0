#include "sluice/routers/expert/care_edit/care_edit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "sluice/routers/expert/care_edit/care_edit_reference.h"
#include "sluice/routers/expert/care_edit/mask_repaint.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace care_edit_test {
using testing::ElementsAre;
using testing::HasSubstr;
constexpr int64_t kDim = 10, kConditions = 5, kKey = 6, kQuery = 4, kMlp = 9, kExperts = 4;
constexpr int64_t kSteps = 6, kTasks = 3;

// Weights as a file has them, and as the reference reads them.
struct Net final : WeightSource {
  std::map<std::string, int64_t> ints;
  std::map<std::string, std::vector<float>> tensors;
  reference::CareEditNet ref;

  explicit Net(double scale = 0.5) {
    const std::string name = "sluice.care_edit.";
    ints = {{name + "layers", 1},     {name + "dim", kDim},     {name + "conditions", kConditions},
            {name + "key", kKey},     {name + "query", kQuery}, {name + "mlp", kMlp},
            {name + "steps", kSteps}, {name + "tasks", kTasks}, {name + "experts", kExperts}};
    uint64_t seed = 20;
    const auto matrix = [&](const std::string& part, int64_t out, int64_t in,
                            reference::CareRows& rows) {
      std::vector<float>& w = tensors["blk.0.care_edit." + part];
      w = NormalRows(out, in, ++seed, scale);
      for (int64_t o = 0; o < out; ++o)
        rows.push_back({w.begin() + o * in, w.begin() + (o + 1) * in});
    };
    const auto bias = [&](const std::string& part, int64_t out, std::vector<double>& b) {
      std::vector<float>& w = tensors["blk.0.care_edit." + part + ".bias"];
      w = NormalRows(1, out, ++seed);
      b.assign(w.begin(), w.end());
    };
    matrix("key.weight", kKey, kDim, ref.key);
    bias("key", kKey, ref.key_bias);
    matrix("condition.weight", kQuery, kConditions, ref.condition);
    bias("condition", kQuery, ref.condition_bias);
    matrix("step", kSteps, kQuery, ref.step);
    matrix("task", kTasks, kQuery, ref.task);
    matrix("mlp.weight", kMlp, kKey + kQuery, ref.mlp);
    bias("mlp", kMlp, ref.mlp_bias);
    matrix("logits.weight", kExperts, kMlp, ref.logits);
    bias("logits", kExperts, ref.logits_bias);
    reference::CareRows gamma;
    matrix("gamma", kSteps, 1, gamma);
    for (const auto& g : gamma) ref.gamma.push_back(1 / (1 + std::exp(-g[0])));
  }
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    const auto at = ints.find(key);
    if (at == ints.end()) return absl::NotFoundError(key);
    return at->second;
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override {
    const auto at = tensors.find(name);
    uint64_t n = 1;
    for (uint64_t s : shape) n *= s;
    if (at == tensors.end() || n != at->second.size()) return absl::NotFoundError(name);
    return at->second;
  }
};

// A router with the memory of one picture.
struct Editor {
  std::unique_ptr<const Router> router;
  std::unique_ptr<const Router::Plan> plan;
  OwnedWorkspace memory, kept;
  RouterState state;
  std::unique_ptr<Executor> executor;
  absl::Status status;

  Editor(const Net& net, const std::string& options, int64_t items, int threads = 1) {
    auto made = BuiltinRouters().routers.Create("expert/care_edit:" + options, &net);
    status = made.status();
    if (!status.ok()) return;
    router = *std::move(made);
    auto planned = router->MakePlan(
        {.items = items, .workers = threads, .hidden = kDim, .conditions = kConditions});
    status = planned.status();
    if (!status.ok()) return;
    plan = *std::move(planned);
    memory.Resize(plan->info().workspace_bytes);
    kept.Resize(plan->info().state_bytes);
    executor = MakeTbbExecutor(threads);
    Forget();
  }
  void Forget() {
    std::fill_n(kept.data(), kept.bytes(), std::byte{0});
    state = {kept.bytes() > 0 ? kept.data() : nullptr, nullptr, 0};
  }
  // Weights [items][experts] of one step.
  std::vector<std::vector<double>> Step(const RouteInputs& in, int64_t* nans = nullptr) {
    AssignmentBuffer out;
    out.Reserve(in.items, plan->info().max_entries);
    status = router->Run(*plan, in, state, {memory.workspace(), executor.get()}, out.view());
    std::vector<std::vector<double>> w(static_cast<size_t>(in.items),
                                       std::vector<double>(kExperts));
    if (!status.ok()) return w;
    EXPECT_TRUE(ValidateAssignment(out.view()).ok()) << ValidateAssignment(out.view());
    for (int64_t i = 0; i < in.items; ++i) {
      for (int64_t e = out.view().row_ptr[i]; e < out.view().row_ptr[i + 1]; ++e) {
        EXPECT_GE(out.view().weight[e], 0);
        w[i][out.view().unit[e]] = out.view().weight[e];
      }
    }
    if (nans != nullptr) *nans = out.view().nan_scores;
    return w;
  }
};

// The tokens of a picture as they change from step to step.
struct Picture {
  int64_t items;
  std::vector<std::vector<float>> steps;
  std::vector<float> conditions = NormalRows(1, kConditions, 3);
  uint64_t task = 1;

  explicit Picture(int64_t n, uint64_t seed = 5) : items(n) {
    for (int64_t s = 0; s < kSteps; ++s) steps.push_back(NormalRows(n, kDim, seed * 100 + s));
  }
  RouteInputs At(int64_t step) const {
    RouteInputs in;
    in.items = items;
    in.hidden = RowsOf(steps[static_cast<size_t>(step)], kDim);
    in.conditions = conditions;
    in.step = step;
    in.task = task;
    return in;
  }
  std::vector<double> Token(int64_t step, int64_t i) const {
    const auto at = steps[static_cast<size_t>(step)].begin() + i * kDim;
    return {at, at + kDim};
  }
  std::vector<double> Conditions() const { return {conditions.begin(), conditions.end()}; }
};
bool Shared(int64_t i, double share) {
  return std::floor((static_cast<double>(i) + 1) * share) >
         std::floor(static_cast<double>(i) * share);
}

TEST(CareEdit, IsItsReferenceOverSteps) {
  const Net net;
  const Picture picture(37);
  for (const auto& [k, ema, share, gamma, base] : {std::tuple(3, 0.5, 0.1, -1.0, -1),
                                                   {1, 0.0, 0.0, 1.0, 0},
                                                   {2, 0.9, 0.4, 0.3, 1},
                                                   {4, 0.25, 0.0, -1.0, 2},
                                                   {3, 0.0, 1.0, 0.75, 3}}) {
    for (int threads : {1, 2, 8}) {
      Editor editor(net,
                    absl::StrCat("temperature=1.5,k=", k, ",ema=", ema, ",share=", share,
                                 ",gamma=", gamma, ",base=", base),
                    picture.items, threads);
      ASSERT_TRUE(editor.status.ok()) << editor.status;
      EXPECT_EQ(editor.plan->info().state_bytes > 0, ema > 0);
      const size_t b = base < 0 ? 3 : static_cast<size_t>(base);
      std::vector<std::vector<double>> before(picture.items);
      for (int64_t step = 0; step < kSteps; ++step) {
        const auto got = editor.Step(picture.At(step));
        ASSERT_TRUE(editor.status.ok()) << editor.status;
        EXPECT_EQ(editor.state.keys, ema > 0 ? step + 1 : 0);
        for (int64_t i = 0; i < picture.items; ++i) {
          std::vector<double> z =
              reference::CareLogits(net.ref, picture.Token(step, i), picture.Conditions(), step, 1);
          for (size_t e = 0; e < z.size() && step > 0; ++e)
            z[e] = (1 - ema) * z[e] + ema * before[i][e];
          before[i] = z;
          const double g = gamma < 0 ? net.ref.gamma[step] : gamma;
          const auto want = reference::CareWeights(z, k, 1.5, g, b, Shared(i, share), b);
          for (size_t e = 0; e < want.size(); ++e)
            ASSERT_NEAR(got[i][e], want[e], 1e-4) << k << " step " << step << " item " << i;
        }
      }
    }
  }
}

TEST(CareEdit, NeighboursAreThoseOnTheGrid) {
  const Net net;
  for (const auto& [items, grid] : {std::pair(42, 7), {6, 1}, {6, 6}, {1, 1}}) {
    const Picture picture(items);
    for (const double smooth : {0.3, 1.0}) {
      Editor editor(net, absl::StrCat("k=2,gamma=1,share=0,ema=0,grid=", grid, ",smooth=", smooth),
                    items);
      ASSERT_TRUE(editor.status.ok()) << editor.status;
      const auto got = editor.Step(picture.At(4));
      reference::CareRows z;
      for (int64_t i = 0; i < items; ++i)
        z.push_back(
            reference::CareLogits(net.ref, picture.Token(4, i), picture.Conditions(), 4, 1));
      z = reference::CareSmooth(z, static_cast<size_t>(grid), smooth);
      for (int64_t i = 0; i < items; ++i) {
        const auto want = reference::CareWeights(z[i], 2, 1, 1, 3, false, 3);
        for (size_t e = 0; e < want.size(); ++e)
          ASSERT_NEAR(got[i][e], want[e], 1e-4) << grid << " item " << i;
      }
    }
  }
}

TEST(CareEdit, WeightsAreConvex) {
  const Net net(1);
  const Picture picture(50);
  for (const char* options : {"", "k=1", "k=0,gamma=0.5", "share=1,k=2", "smooth=0.5,grid=10"}) {
    Editor editor(net, options, picture.items);
    for (int64_t step = 0; step < kSteps; ++step) {
      for (const auto& row : editor.Step(picture.At(step))) {
        double sum = 0;
        for (double w : row) {
          EXPECT_GE(w, 0);
          sum += w;
        }
        EXPECT_NEAR(sum, 1, 1e-6) << options;
      }
    }
  }
}
// K of all experts is the dense mixture, gamma = 0 the base alone.
TEST(CareEdit, ItsEnds) {
  const Net net;
  const Picture picture(20);
  Editor dense(net, "k=0,gamma=1,ema=0,share=0", picture.items);
  Editor four(net, "k=4,gamma=1,ema=0,share=0.7", picture.items);
  const auto all = dense.Step(picture.At(2));
  EXPECT_EQ(all, four.Step(picture.At(2)));
  for (int64_t i = 0; i < picture.items; ++i) {
    const auto z = reference::CareLogits(net.ref, picture.Token(2, i), picture.Conditions(), 2, 1);
    double sum = 0;
    for (double x : z) sum += std::exp(x);
    for (size_t e = 0; e < z.size(); ++e) EXPECT_NEAR(all[i][e], std::exp(z[e]) / sum, 1e-5);
  }
  Editor base(net, "gamma=0,base=1", picture.items);
  for (const auto& row : base.Step(picture.At(0))) EXPECT_THAT(row, ElementsAre(0, 1, 0, 0));
}
TEST(CareEdit, TheShareTakesTheSharedExpert) {
  const Net net;
  const Picture picture(100);
  for (double share : {0.0, 0.1, 0.37, 1.0}) {
    Editor editor(net, absl::StrCat("k=1,gamma=1,ema=0,shared=2,share=", share), picture.items);
    const auto with = editor.Step(picture.At(1));
    Editor without(net, "k=1,gamma=1,ema=0,share=0", picture.items);
    const auto free = without.Step(picture.At(1));
    int64_t taken = 0;
    for (int64_t i = 0; i < picture.items; ++i) {
      taken += Shared(i, share);
      if (Shared(i, share)) {
        EXPECT_EQ(with[i][2], 1) << i;
      } else {
        EXPECT_EQ(with[i], free[i]) << i;
      }
    }
    EXPECT_EQ(taken, std::llround(100 * share));
  }
  // By position, whatever part of the picture is given.
  Editor editor(net, "k=1,gamma=1,ema=0,shared=2,share=0.5", picture.items);
  const std::vector<int64_t> odd = {1, 3, 5, 7};
  RouteInputs in = picture.At(1);
  in.items = 4;
  in.hidden.rows = 4;
  in.positions = odd;
  for (const auto& row : editor.Step(in)) EXPECT_EQ(row[2], 1);
}
TEST(CareEdit, OneConditionPresentIsItsExpert) {
  const Net net;
  const Picture picture(15);
  const float never = -std::numeric_limits<float>::infinity();
  for (int64_t present = 0; present < kExperts; ++present) {
    std::vector<float> bias(kExperts, never);
    bias[present] = 0;
    for (const char* options : {"k=1", "k=3,share=1", "gamma=0"}) {
      Editor editor(net, options, picture.items);
      for (int64_t step = 0; step < 3; ++step) {
        RouteInputs in = picture.At(step);
        in.unit_bias = bias;
        for (const auto& row : editor.Step(in)) EXPECT_NEAR(row[present], 1, 1e-6) << options;
      }
    }
  }
}

// Memory belongs to the picture: taking turns with another, beginning again, or none at all.
TEST(CareEdit, MemoryIsTheStatesAlone) {
  const Net net;
  const Picture one(24, 1);
  const Picture two(24, 2);
  std::vector<std::vector<std::vector<double>>> alone;
  Editor editor(net, "ema=0.8", 24);
  for (int64_t s = 0; s < kSteps; ++s) alone.push_back(editor.Step(one.At(s)));
  Editor a(net, "ema=0.8", 24);
  Editor b(net, "ema=0.8", 24);
  for (int64_t s = 0; s < kSteps; ++s) {
    EXPECT_EQ(a.Step(one.At(s)), alone[s]);
    b.Step(two.At(s));
  }
  editor.Forget();
  EXPECT_EQ(editor.Step(one.At(0)), alone[0]);
  EXPECT_NE(editor.Step(one.At(0)), editor.Step(one.At(1)));
  editor.Forget();
  EXPECT_NE(editor.Step(one.At(3)), alone[3]);

  // ema = 0: nothing is kept, and any order of steps gives the same.
  Editor plain(net, "ema=0", 24);
  const auto third = plain.Step(one.At(3));
  plain.Step(one.At(1));
  EXPECT_EQ(plain.Step(one.At(3)), third);
  EXPECT_EQ(plain.state.keys, 0);
}
TEST(CareEdit, ABadStepSpoilsNoLaterOne) {
  const Net net;
  Picture picture(8);
  picture.steps[1][3 * kDim] = NAN;
  Editor editor(net, "gamma=1,share=0", picture.items);
  editor.Step(picture.At(0));
  int64_t nans = 0;
  const auto bad = editor.Step(picture.At(1), &nans);
  EXPECT_EQ(nans, kExperts);
  EXPECT_THAT(bad[3], ElementsAre(0, 0, 0, 0));
  const auto after = editor.Step(picture.At(2), &nans);
  EXPECT_EQ(nans, 0);
  Editor fresh(net, "gamma=1,share=0", picture.items);
  EXPECT_EQ(after[3], fresh.Step(picture.At(2))[3]);
  EXPECT_NE(after[4], fresh.Step(picture.At(2))[4]);
}

TEST(CareEdit, ErrorsSayWhatWasGivenAndAllowed) {
  const Net net;
  const auto made = [&](const std::string& options) {
    return std::string(Editor(net, options, 8).status.message());
  };
  EXPECT_THAT(made("k=5"), HasSubstr("k=5, base=-1, shared=-1 of 4 experts"));
  EXPECT_THAT(made("base=4"), HasSubstr("base=4"));
  EXPECT_THAT(made("shared=4"), HasSubstr("shared=4"));
  EXPECT_THAT(made("gamma=-0.5"), HasSubstr("allowed 0 to 1, or -1"));
  EXPECT_THAT(made("smooth=0.5"), HasSubstr("smooth=0.5 with grid=0; allowed both, or neither"));
  EXPECT_THAT(made("grid=4"), HasSubstr("allowed both, or neither"));
  EXPECT_THAT(made("ema=1"), HasSubstr("ema"));
  EXPECT_THAT(made("layer=1"), HasSubstr("the weights have 1 layers"));
  Net none = net;
  none.ints["sluice.care_edit.experts"] = 0;
  EXPECT_THAT(std::string(Editor(none, "", 8).status.message()), HasSubstr("experts 0"));

  const Picture picture(8);
  const auto run = [&](const std::string& options, const auto& change) {
    Editor editor(net, options, 8);
    editor.Step(picture.At(0));
    EXPECT_TRUE(editor.status.ok()) << editor.status;
    RouteInputs in = picture.At(1);
    change(editor, in);
    editor.Step(in);
    EXPECT_EQ(editor.state.keys, editor.state.layer == nullptr ? 0 : 1);
    return std::string(editor.status.message());
  };
  using In = RouteInputs;
  EXPECT_THAT(run("", [](Editor&, In& in) { in.step = kSteps; }),
              HasSubstr("step 6; the weights know steps 0 to 5"));
  EXPECT_THAT(run("", [](Editor&, In& in) { in.step = -1; }), HasSubstr("step -1"));
  EXPECT_THAT(run("", [](Editor&, In& in) { in.task = 3; }),
              HasSubstr("task 3; the weights know tasks 0 to 2"));
  EXPECT_THAT(run("",
                  [](Editor&, In& in) {
                    in.items = 7;
                    in.hidden.rows = 7;
                  }),
              HasSubstr("7 tokens, and the state speaks of 8"));
  EXPECT_THAT(run("smooth=0.5,grid=4,ema=0",
                  [](Editor&, In& in) {
                    in.items = 7;
                    in.hidden.rows = 7;
                  }),
              HasSubstr("7 tokens are no whole rows of grid=4"));
  EXPECT_THAT(run("", [](Editor& e, In&) { e.state = {}; }),
              HasSubstr("remembers earlier steps of the same items in 192 bytes, and was given "
                        "none"));
}

// 6.7: a field that four operators paint, each in a quarter of its own. The token says which, with
// noise that is anew at every step: what memory and neighbours are for.
struct Toy {
  static constexpr int64_t kGrid = 16;
  static int64_t Right(int64_t i) {
    return 2 * (i / kGrid / (kGrid / 2)) + i % kGrid / (kGrid / 2);
  }
  static bool Border(int64_t i) {
    const int64_t r = i / kGrid;
    const int64_t c = i % kGrid;
    const auto near = [](int64_t x) { return x == kGrid / 2 - 1 || x == kGrid / 2; };
    return near(r) || near(c);
  }
  // A net that hands the token's first four numbers to the experts.
  static Net Weights() {
    Net net;
    for (auto& [name, w] : net.tensors) std::fill(w.begin(), w.end(), 0.0f);
    for (int64_t e = 0; e < kExperts; ++e) {
      net.tensors["blk.0.care_edit.key.weight"][e * kDim + e] = 1;
      net.tensors["blk.0.care_edit.mlp.weight"][e * (kKey + kQuery) + e] = 1;
      net.tensors["blk.0.care_edit.logits.weight"][e * kMlp + e] = 1;
      net.tensors["blk.0.care_edit.mlp.bias"][e] = 8;  // beyond the ReLU's corner
    }
    return net;
  }
  struct Result {
    double right = 0, border = 0, error = 0;  // shares of tokens at the last step; of the field
  };
  static Result Run(const std::string& options) {
    constexpr int64_t kItems = kGrid * kGrid;
    const Net net = Weights();
    Editor editor(net, "k=1,gamma=1,share=0," + options, kItems);
    EXPECT_TRUE(editor.status.ok()) << editor.status;
    Picture picture(kItems, 9);
    for (auto& step : picture.steps) {
      for (int64_t i = 0; i < kItems; ++i) step[i * kDim + Right(i)] += 1.2f;
    }
    Result r;
    std::vector<std::vector<double>> w;
    for (int64_t s = 0; s < kSteps; ++s) w = editor.Step(picture.At(s));
    int64_t border = 0;
    for (int64_t i = 0; i < kItems; ++i) {
      const bool hit = w[i][Right(i)] == 1;
      border += Border(i);
      r.right += hit / double(kItems);
      r.border += Border(i) && hit;
      for (int64_t e = 0; e < kExperts; ++e) {
        const double off = Paint(e, i) - Paint(Right(i), i);
        r.error += w[i][e] * off * off / double(kItems);
      }
    }
    r.border /= static_cast<double>(border);
    return r;
  }
  // Four operators on a ramp: keep, invert, double, flatten.
  static double Paint(int64_t expert, int64_t i) {
    const double x = static_cast<double>(i) / (kGrid * kGrid);
    const double y[] = {x, 1 - x, 2 * x, 0.5};
    return y[expert];
  }
};
TEST(CareEdit, MemoryAndNeighboursFindTheRightOperator) {
  const Toy::Result plain = Toy::Run("ema=0");
  const Toy::Result memory = Toy::Run("ema=0.7");
  const Toy::Result neighbours = Toy::Run("ema=0,smooth=0.6,grid=16");
  const Toy::Result both = Toy::Run("ema=0.7,smooth=0.6,grid=16");
  for (const auto& [name, r] :
       {std::pair("plain", plain), {"memory", memory}, {"neighbours", neighbours}, {"both", both}})
    std::printf("%-10s right %.3f, at borders %.3f, error of the field %.4f\n", name, r.right,
                r.border, r.error);
  EXPECT_GT(memory.right, plain.right + 0.1);
  EXPECT_GT(neighbours.right, plain.right + 0.1);
  EXPECT_GT(both.right, memory.right);
  EXPECT_LT(both.error, memory.error);
  // Neighbours of the other side blur what memory does not.
  EXPECT_GT(memory.right - memory.border, -0.1);
  EXPECT_GT(neighbours.right, neighbours.border);
}

TEST(MaskRepaint, StaysBetweenZeroAndOneAndKeepsWhatNothingChanges) {
  constexpr int64_t kRows = 5, kCols = 7, kChannels = 3;
  const std::vector<float> features = NormalRows(kRows * kCols, kChannels, 4);
  expert::MaskRepaint repaint = {
      .channels = kChannels, .kernel = NormalRows(kChannels + 1, 9, 6), .bias = 0.1f};
  std::vector<float> mask(kRows * kCols);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<float>(i % 5) / 4;
  std::vector<float> before(mask.size());
  int64_t fell = 0;
  for (int turn = 0; turn < 4; ++turn) {
    const std::vector<float> was = mask;
    repaint.Run(RowsOf(features, kChannels), kRows, kCols, absl::MakeSpan(mask),
                absl::MakeSpan(before));
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kCols; ++c) {
        double logit = 0.1;
        for (int64_t a = 0; a < 3; ++a) {
          for (int64_t b = 0; b < 3; ++b) {
            const int64_t y = r + a - 1;
            const int64_t x = c + b - 1;
            if (y < 0 || y >= kRows || x < 0 || x >= kCols) continue;
            for (int64_t f = 0; f <= kChannels; ++f) {
              const double v =
                  f == kChannels ? was[y * kCols + x] : features[(y * kCols + x) * kChannels + f];
              logit += repaint.kernel[f * 9 + a * 3 + b] * v;
            }
          }
        }
        const double want = std::clamp(was[r * kCols + c] + std::tanh(logit / 2), 0.0, 1.0);
        EXPECT_NEAR(mask[r * kCols + c], want, 1e-5);
        fell += mask[r * kCols + c] < was[r * kCols + c];
      }
    }
  }
  EXPECT_GT(fell, 0);

  // Nothing asked for: nothing changes, a number that is none included.
  repaint.kernel.assign(repaint.kernel.size(), 0);
  repaint.bias = 0;
  const std::vector<float> kept = mask;
  repaint.Run(RowsOf(features, kChannels), kRows, kCols, absl::MakeSpan(mask),
              absl::MakeSpan(before));
  EXPECT_EQ(mask, kept);
  repaint.bias = NAN;
  repaint.Run(RowsOf(features, kChannels), kRows, kCols, absl::MakeSpan(mask),
              absl::MakeSpan(before));
  EXPECT_EQ(mask, kept);

  // The plain sigmoid of the notes can only grow the mask: the trap.
  repaint.bias = -3;
  repaint.change = expert::MaskChange::kSigmoid;
  for (int turn = 0; turn < 100; ++turn) {
    const std::vector<float> was = mask;
    repaint.Run(RowsOf(features, kChannels), kRows, kCols, absl::MakeSpan(mask),
                absl::MakeSpan(before));
    for (size_t i = 0; i < mask.size(); ++i) ASSERT_GE(mask[i], was[i]);
  }
  for (float m : mask) EXPECT_EQ(m, 1);
}
}  // namespace care_edit_test
SLUICE_END_NAMESPACE
