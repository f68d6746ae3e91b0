#include "sluice/examples/llama/random_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "sluice/api/dtype.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace llama {
namespace {
using testing::HasSubstr;

std::string Bytes(const std::string& name, uint64_t seed) {
  const auto model = ParseRandomModel(name);
  EXPECT_TRUE(model.ok()) << model.status();
  const auto file = TemporaryFile::Create(FileBytes(*model), name);
  EXPECT_TRUE(file.ok()) << file.status();
  int64_t said = 0;
  const absl::Status written =
      WriteRandomModel(*model, seed, file->fd(), [&](int64_t bytes) { said = bytes; });
  EXPECT_TRUE(written.ok()) << written;
  std::ifstream f(file->path(), std::ios::binary);
  std::stringstream all;
  all << f.rdbuf();
  EXPECT_EQ(std::ssize(all.str()), FileBytes(*model));
  EXPECT_LE(said, FileBytes(*model));
  EXPECT_GT(said, FileBytes(*model) - 64);
  return all.str();
}

TEST(RandomModel, IsReadBackWithTheDeviationThatKeepsSizes) {
  const std::string bytes = Bytes("random:tiny-q8_0", 1);
  const auto g = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  ASSERT_TRUE(g.ok()) << g.status();
  EXPECT_EQ(*g->Text("general.architecture"), "llama");
  EXPECT_EQ(*g->Int("llama.block_count"), 2);
  EXPECT_EQ(*g->Int("llama.vocab_size"), 256);
  EXPECT_EQ(g->tensors().size(), 2u + 2u * 9u);
  EXPECT_EQ(*g->ReadF32("output_norm.weight", {{64}}), std::vector<float>(64, 1.0f));
  for (const auto& [name, in, out] :
       {std::tuple{"blk.1.ffn_down.weight", 128, 64}, {"blk.0.attn_k.weight", 64, 64}}) {
    const uint64_t shape[] = {static_cast<uint64_t>(in), static_cast<uint64_t>(out)};
    const auto w = g->ReadF32(name, shape);
    ASSERT_TRUE(w.ok()) << w.status();
    double sum = 0, squares = 0;
    for (float x : *w) {
      sum += static_cast<double>(x);
      squares += static_cast<double>(x) * static_cast<double>(x);
    }
    const auto n = static_cast<double>(w->size());
    EXPECT_NEAR(sum / n, 0, 0.01) << name;
    EXPECT_NEAR(squares / n * in, 1, 0.1) << name;
  }
}

// Of q4_0, which this library's reader does not know: a block of 32 nibbles about 8 and a scale.
TEST(RandomModel, FourBitsHaveTheSameDeviation) {
  const std::string bytes = Bytes("random:tiny-q4_0", 1);
  const int64_t blocks = 64 / 32 * 256;  // the embedding, which comes first
  const int64_t data = std::ssize(bytes) - [&] {
    const int64_t matrices = 2 * 64 / 32 * (128 + 64 + 64 + 128 / 2 * 2 + 128 * 3) * 18;
    const int64_t norms = (1 + 2 * 2) * 64 * 4;
    return blocks * 18 + matrices + norms;
  }();
  double squares = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    uint16_t scale = 0;
    std::memcpy(&scale, &bytes[data + b * 18], sizeof scale);
    for (int64_t i = 2; i < 18; ++i) {
      const auto byte = static_cast<uint8_t>(bytes[data + b * 18 + i]);
      for (int nibble : {byte & 15, byte >> 4}) {
        const double x = static_cast<double>(F16ToF32(scale)) * (nibble - 8);
        squares += x * x;
      }
    }
  }
  EXPECT_NEAR(squares / static_cast<double>(blocks * 32) * 64, 1, 0.1);
}

TEST(RandomModel, SeedsSayWhatItIs) {
  EXPECT_EQ(Bytes("random:tiny-q4_0", 7), Bytes("random:tiny-q4_0", 7));
  EXPECT_NE(Bytes("random:tiny-q4_0", 7), Bytes("random:tiny-q4_0", 8));
  // Two matrices of a shape, and two blocks of one, are not the same.
  const std::string bytes = Bytes("random:tiny-q8_0", 1);
  const auto g = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  const uint64_t shape[] = {64, 128};
  const std::vector<float> gate = *g->ReadF32("blk.0.ffn_gate.weight", shape);
  EXPECT_NE(gate, *g->ReadF32("blk.0.ffn_up.weight", shape));
  EXPECT_NE(gate, *g->ReadF32("blk.1.ffn_gate.weight", shape));
  EXPECT_FALSE(std::equal(gate.begin(), gate.begin() + 32, gate.begin() + 32));
}

TEST(RandomModel, SizesAreThoseOfTheirNamesakes) {
  const auto gigabytes = [](const char* name) {
    return static_cast<double>(FileBytes(*ParseRandomModel(name))) / 1e9;
  };
  EXPECT_NEAR(gigabytes("random:1B-q8_0"), 1.2358 * 34 / 32, 0.005);
  EXPECT_NEAR(gigabytes("random:4B-q4_0"), 4.0221 * 18 / 32, 0.005);
  EXPECT_NEAR(gigabytes("random:8B-q4_0"), 8.0301 * 18 / 32, 0.005);
}

TEST(RandomModel, UnknownOnesAreRefusedWithTheList) {
  for (const char* name : {"random:2B-q8_0", "random:1B", "random:1B-q5_1",
                           "random:", "random:1B-q8_0 ", "model.gguf"}) {
    const auto model = ParseRandomModel(name);
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(model.status().message(), HasSubstr(name));
    EXPECT_THAT(model.status().message(), HasSubstr("random:1B-q8_0, random:1B-q4_0, random:4B"));
  }
  EXPECT_TRUE(IsRandomModel("random:2B"));
  EXPECT_FALSE(IsRandomModel("random.gguf"));
}

class InFolder {
 public:
  explicit InFolder(const std::string& folder) { setenv("TMPDIR", folder.c_str(), 1); }
  ~InFolder() { unsetenv("TMPDIR"); }
  InFolder(const InFolder&) = delete;
  InFolder& operator=(const InFolder&) = delete;
};
TEST(TemporaryFile, LeavesNothingBehindAndWantsRoom) {
  const std::string folder = testing::TempDir() + "/random_model_" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  {
    const InFolder in(folder);
    const auto file = TemporaryFile::Create(1, "a test");
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE(std::filesystem::is_regular_file(file->path()));
    EXPECT_TRUE(std::filesystem::is_empty(folder));  // also where the process is killed
    const absl::Status full = TemporaryFile::Create(int64_t{1} << 60, "a test").status();
    EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(full.message(), testing::AllOf(HasSubstr("a test takes 1152921504607 MB"),
                                               HasSubstr(folder), HasSubstr("TMPDIR")));
  }
  {
    const InFolder in(folder + "/missing");
    EXPECT_THAT(TemporaryFile::Create(1, "a test").status().message(),
                testing::AllOf(HasSubstr("/missing"), HasSubstr("TMPDIR")));
  }
  std::filesystem::remove(folder);
}
}  // namespace
}  // namespace llama
SLUICE_END_NAMESPACE
