#include "sluice/runtime/base/regular_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

SLUICE_BEGIN_NAMESPACE
namespace regular_file_test {
using testing::HasSubstr;

class RegularFileTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(folder_), nullptr);
    std::ofstream(Path("words")) << "some words";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Path(const std::string& name) const { return std::string(folder_) + "/" + name; }
  char folder_[32] = "/tmp/sluice-file-XXXXXX";
};

TEST_F(RegularFileTest, ReadsWhatIsThere) {
  std::filesystem::create_symlink("words", Path("link"));
  for (const char* name : {"words", "link"}) {
    const auto f = RegularFile::Open(Path(name));
    ASSERT_TRUE(f.ok()) << f.status();
    EXPECT_EQ(f->size(), 10);
    char five[6] = {};
    ASSERT_TRUE(f->Read(5, 5, five).ok());
    EXPECT_STREQ(five, "words");
    EXPECT_EQ(f->Read(6, 5, five).code(), absl::StatusCode::kDataLoss);
  }
}
TEST_F(RegularFileTest, RefusesPipesDevicesAndFoldersAtOnce) {
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  for (const std::string& path : {Path("pipe"), std::string("/dev/zero"), std::string(folder_)})
    EXPECT_THAT(RegularFile::Open(path).status().message(), HasSubstr("not a regular file"));
  EXPECT_THAT(RegularFile::Open(Path("none")).status().message(), HasSubstr("cannot open"));
}
TEST_F(RegularFileTest, HashesContentInPieces) {
  EXPECT_EQ(*HashFile(Path("words")), HashText("some words"));
  std::string large((size_t{3} << 20) + 17, 'x');
  std::ofstream(Path("large")) << large;
  EXPECT_EQ(*HashFile(Path("large")), HashText(large));
  large.back() = 'y';
  std::ofstream(Path("large")) << large;
  EXPECT_EQ(*HashFile(Path("large")), HashText(large));
}
}  // namespace regular_file_test
SLUICE_END_NAMESPACE
