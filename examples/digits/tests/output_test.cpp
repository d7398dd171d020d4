#include "heatmap.hpp"
#include "progress.hpp"
#include "shared.hpp"
#include "table.hpp"

#include <cstdlib>

#include "support.hpp"

using namespace digits;
using digits::test::message_of;
using digits::test::xml_fault;

namespace {

/// Results of `routers` routers with `experts` experts, whose maps differ from one another. The first result is the
/// baseline.
std::vector<result> some_results(int routers, int experts) {
  std::vector<result> results(1);
  results[0].router = results[0].title = "dense";
  results[0].accuracy = 0.98;
  results[0].experts_per_token = 1;
  for (int i = 0; i < routers; ++i) {
    result r;
    r.router = "router_" + std::to_string(i);
    r.title = "router <" + std::to_string(i) + "> & \"co\", a name that is far too long for its map";
    r.accuracy = 0.96 + 0.001 * i;
    r.experts_per_token = 2;
    r.load_cv = 0.125;
    r.dropped = 0.5;
    r.tokens_per_second = 1234567.4;
    r.parameters = 98765;
    r.active_parameters = 43210;
    r.share.resize(classes, experts);
    for (int d = 0; d < classes; ++d)
      for (int e = 0; e < experts; ++e) r.share(d, e) = 1 + (7 * d + 3 * e + i) % 11;
    for (int d = 0; d < classes; ++d) r.share.row(d) /= r.share.row(d).sum();
    for (int e = 0; e < experts; ++e) r.experts.push_back(std::to_string(e));
    results.push_back(r);
  }
  return results;
}

struct box {
  double left, right, top, bottom;
  std::string text;
};

double attribute(const std::string& tag, const std::string& name) {
  return std::strtod(tag.c_str() + tag.find(" " + name + "=\"") + name.size() + 3, nullptr);
}

/// Where the upright texts of a picture stand, if a letter is 0.6 of the font's size wide.
std::vector<box> upright_texts(const std::string& svg) {
  std::vector<box> boxes;
  for (std::size_t at = svg.find("<text "); at != std::string::npos; at = svg.find("<text ", at + 1)) {
    const std::size_t end = svg.find('>', at);
    const std::string tag = svg.substr(at, end - at), text = svg.substr(end + 1, svg.find('<', end) - end - 1);
    if (tag.find("rotate") != std::string::npos) continue;
    const double size = attribute(tag, "font-size"), x = attribute(tag, "x"), y = attribute(tag, "y");
    std::string shown = text;
    for (const char* entity : {"&amp;", "&lt;", "&gt;", "&quot;"})
      for (std::size_t i = shown.find(entity); i != std::string::npos; i = shown.find(entity))
        shown.replace(i, std::string(entity).size(), "_");
    const double width = 0.6 * size * static_cast<double>(shown.size());
    const double left = tag.find("\"middle\"") != std::string::npos ? x - width / 2
                        : tag.find("\"end\"") != std::string::npos  ? x - width
                                                                    : x;
    boxes.push_back({left, left + width, y - 0.75 * size, y + 0.2 * size, text});
  }
  return boxes;
}

}  // namespace

TEST_CASE("csv: header and one row a result, readable without loss of meaning", "[digits][table]") {
  const std::string text = csv(some_results(1, 8));
  CHECK(text ==
        "router,accuracy,experts_per_token,load_cv,dropped,tokens_per_s,parameters,active_parameters\n"
        "dense,0.98,1,0,0,0,0,0\n"
        "router_0,0.96,2,0.125,0.5,1234567,98765,43210\n");
}

TEST_CASE("table: columns are aligned", "[digits][table]") {
  std::ostringstream out;
  print_table(out, some_results(3, 8));
  std::istringstream lines(out.str());
  std::string line, first;
  REQUIRE(std::getline(lines, first));
  CHECK(first.starts_with("router "));
  int n = 1;
  for (; std::getline(lines, line); ++n) CHECK(line.size() == first.size());
  CHECK(n == 1 + 1 + 4);
  CHECK(out.str().find("96.10 %     -1.90") != std::string::npos);
  CHECK(out.str().find("1,234,567") != std::string::npos);
  CHECK(grouped(-123456) == "-123,456");
  CHECK(grouped(999) == "999");
  CHECK(detail::points(-0.000001) == "0.00");
  CHECK(detail::points(0.0125) == "+1.25");
}

TEST_CASE("table: says how much of an accuracy is chance", "[digits][table]") {
  std::vector<result> results(2);
  results[0].accuracy = 0.95;
  results[1].accuracy = 0.85;
  // A share of 0.9 of 400: sqrt(0.9 * 0.1 / 400) = 0.015.
  CHECK(accuracy_noise(results, 400, 1).find("a share of 400 images, is about 1.50 points;") != std::string::npos);
  const std::string several = accuracy_noise(results, 400, 4);
  CHECK(several.find("1/sqrt(4) = 0.50 of that") != std::string::npos);
  CHECK(several.find("is about 1.50 points.") != std::string::npos);
}

TEST_CASE("mean: averages the numbers and keeps the first map", "[digits][table]") {
  auto a = some_results(1, 4)[1], b = a;
  a.accuracy = 0.97;
  b.accuracy = 0.99;
  b.parameters = 98767;
  b.share.setZero();
  const result m = mean({a, b});
  CHECK(std::abs(m.accuracy - 0.98) < 1e-15);
  CHECK(std::abs(m.accuracy_deviation - 0.01 * std::sqrt(2.0)) < 1e-15);  // sqrt((0.01^2 + 0.01^2) / (2 - 1))
  CHECK(m.parameters == 98766);
  CHECK(m.share == a.share);
  CHECK(mean({a}).accuracy_deviation == 0);
}

TEST_CASE("write_file: replaces as a whole and leaves no draft behind", "[digits][file]") {
  const test::temporary_folder folder("file");
  const std::string file = folder.file("a.txt");
  require_writable(file);
  CHECK(folder.entries() == 0);
  write_file(file, "old");
  require_writable(file);
  CHECK(test::contents(file) == "old");
  write_file(file, "new");
  CHECK(test::contents(file) == "new");
  CHECK(folder.entries() == 1);

  std::filesystem::create_symlink(file, folder.file("link.txt"));
  write_file(folder.file("link.txt"), "through the link");
  CHECK(test::contents(file) == "through the link");
  CHECK(std::filesystem::is_symlink(folder.file("link.txt")));

  const std::string lost = folder.file("no/such/folder.txt");
  CHECK(message_of([&] { require_writable(lost); }).starts_with(lost + ": cannot write the file: "));
  CHECK(message_of([&] { write_file(folder.file("."), "x"); }).ends_with("it is a folder"));
  CHECK(folder.entries() == 2);
}

#if !defined(_WIN32)
TEST_CASE("write_file: a device stays a device", "[digits][file]") {
  require_writable("/dev/null");
  write_file("/dev/null", "x");
  CHECK(std::filesystem::is_character_file("/dev/null"));
}
#endif

TEST_CASE("colour scale: gets darker with every step, inside sRGB", "[digits][heatmap]") {
  double before = 2;
  for (int i = 0; i <= 100; ++i) {
    const colour c = scale_colour(i / 100.0);
    CHECK(luminance(c) < before);
    before = luminance(c);
    for (const double part : {c.red, c.green, c.blue}) CHECK((part >= 0 && part <= 1));
  }
  CHECK(hex({0, 0.5, 1}) == "#0080ff");
  CHECK(luminance(scale_colour(0)) > 0.85);
  CHECK(luminance(scale_colour(1)) < 0.06);
}

TEST_CASE("heatmap: well-formed, one map a router, one cell a digit and expert", "[digits][heatmap]") {
  const int routers = GENERATE(0, 1, 2, 5, 12);
  const int experts = GENERATE(1, 8, 11, 40);
  CAPTURE(routers, experts);
  const std::string svg = heatmap(some_results(routers, experts));
  CHECK(xml_fault(svg) == "");
  std::size_t cells = 0;
  for (std::size_t at = svg.find("<title>digit "); at != std::string::npos; at = svg.find("<title>digit ", at + 1))
    ++cells;
  CHECK(cells == static_cast<std::size_t>(routers * classes * experts));
  CHECK(svg.find("nan") == std::string::npos);
  CHECK(svg.find("inf") == std::string::npos);
}

TEST_CASE("heatmap: texts stand inside the picture and apart from one another", "[digits][heatmap]") {
  const int routers = GENERATE(1, 3, 12);
  const int experts = GENERATE(8, 11, 40);
  CAPTURE(routers, experts);
  const std::string svg = heatmap(some_results(routers, experts));
  const std::string root = svg.substr(svg.find("<svg"), 400);
  const double width = attribute(root, "width"), height = attribute(root, "height");
  const auto boxes = upright_texts(svg);
  REQUIRE(boxes.size() > 20);
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    const box& a = boxes[i];
    CAPTURE(a.text);
    CHECK((a.left >= 0 && a.right <= width && a.top >= 0 && a.bottom <= height));
    for (std::size_t j = 0; j < i; ++j) {
      const box& b = boxes[j];
      const bool apart = a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
      if (!apart) FAIL_CHECK("'" << a.text << "' and '" << b.text << "' overlap");
    }
  }
}

TEST_CASE("heatmap: columns follow the digit that an expert favours, unused experts come last", "[digits][heatmap]") {
  Eigen::MatrixXd share = Eigen::MatrixXd::Zero(3, 4);
  share << 0, 0, 0.2, 0.8,  //
      0.5, 0, 0.4, 0.1,     //
      0.9, 0, 0.1, 0;
  CHECK(detail::column_order(share) == std::vector<Eigen::Index>{3, 2, 0, 1});
}

TEST_CASE("xml_fault: finds what it looks for", "[digits][heatmap]") {
  const std::string head = "<?xml version=\"1.0\"?>\n";
  CHECK(xml_fault(head + "<a b=\"1\"><c/>x &amp; y</a>\n") == "");
  for (const char* bad : {"<a>", "<a></b>", "<a/><a/>", "x<a/>", "<a>&</a>", "<a>&nope;</a>", "<a b></a>",
                          "<a b=\"1\" b=\"2\"/>", "<a b=\"<\"/>", "<a b=\"1\"c=\"2\"/>", "</a>", ""})
    CHECK(xml_fault(head + bad) != "");
}

TEST_CASE("progress: silent, one line a training, or a bar that wipes itself", "[digits][progress]") {
  std::ostringstream out;
  const auto train = [&](progress_style style, int width) {
    out.str("");
    progress p(out, style, 4, width);
    for (const char* name : {"top_k", "a name that is much longer than the terminal is wide"}) {
      p.begin(name);
      p.epoch(1, 2, 2.5, 0.125);
      p.epoch(2, 2, 1.25, 0.5);
      p.finish(0.975);
    }
    return out.str();
  };
  CHECK(train(progress_style::none, 80) == "");

  const std::string lines = train(progress_style::lines, 80);
  CHECK(lines.starts_with("top_k: test accuracy 97.50 %, "));
  CHECK(std::count(lines.begin(), lines.end(), '\n') == 2);
  CHECK(lines.find('\r') == std::string::npos);

  const std::string bar = train(progress_style::bar, 60);
  CHECK(bar.find("[##########..........] top_k  epoch 2/2") != std::string::npos);
  CHECK(bar.find("s left") != std::string::npos);
  CHECK(bar.find('\n') == std::string::npos);
  // What a terminal shows: each \r starts the line again. It never wraps, and it is blank in the end.
  std::string screen;
  std::size_t column = 0;
  for (const char c : bar) {
    if (c == '\r') {
      column = 0;
      continue;
    }
    screen.resize(std::max(screen.size(), column + 1), ' ');
    screen[column++] = c;
    REQUIRE(column < 60);
  }
  CHECK(column == 0);
  CHECK(screen.find_first_not_of(' ') == std::string::npos);
  for (const int width : {1, 2, 10, 24}) CHECK(train(progress_style::bar, width).size() < 2000);
}

TEST_CASE("progress: a bar that is cut off by an error is wiped", "[digits][progress]") {
  std::ostringstream out;
  {
    progress p(out, progress_style::bar, 10);
    p.begin("top_k");
    p.epoch(1, 10, 1, 0.5);
  }
  CHECK(out.str().ends_with('\r'));
}
