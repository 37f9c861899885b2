// Judges one PNG or JPEG image: inspect part.onnx image.png mask.pgm
//
// g++ -std=c++17 -O2 inspect.cpp -I"$ORT/include" -L"$ORT/lib" -lonnxruntime -lpng -ljpeg -o inspect
// where ORT is an unpacked release of ONNX Runtime; PNG and JPEG: apt-get install libpng-dev libjpeg-dev.

#include <onnxruntime_cxx_api.h>
#include <png.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>  // after <cstdio>, which it needs

struct Image {
    int64_t height = 0, width = 0;
    std::vector<uint8_t> rgb;  // rows from the top, three bytes a pixel
};

using File = std::unique_ptr<FILE, int (*)(FILE*)>;

static Image read_png(FILE* file) {
    png_structp png = png_create_read_struct(
        PNG_LIBPNG_VER_STRING, nullptr, [](png_structp, png_const_charp text) { throw std::runtime_error(text); }, nullptr);
    png_infop info = png_create_info_struct(png);
    png_init_io(png, file);
    // Grey and palettes become RGB; transparency and the lower half of 16 bits are dropped.
    png_read_png(png, info, PNG_TRANSFORM_EXPAND | PNG_TRANSFORM_STRIP_16 | PNG_TRANSFORM_STRIP_ALPHA | PNG_TRANSFORM_GRAY_TO_RGB, nullptr);
    Image image{png_get_image_height(png, info), png_get_image_width(png, info), {}};
    png_bytepp rows = png_get_rows(png, info);
    for (int64_t row = 0; row < image.height; ++row) {
        image.rgb.insert(image.rgb.end(), rows[row], rows[row] + 3 * image.width);
    }
    png_destroy_read_struct(&png, &info, nullptr);
    return image;
}

static Image read_jpeg(FILE* file) {
    jpeg_error_mgr errors;
    jpeg_decompress_struct jpeg;
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr) { throw std::runtime_error("not a whole JPEG file"); };
    jpeg_create_decompress(&jpeg);
    jpeg_stdio_src(&jpeg, file);
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    Image image{jpeg.output_height, jpeg.output_width, std::vector<uint8_t>(3ull * jpeg.output_height * jpeg.output_width)};
    while (jpeg.output_scanline < jpeg.output_height) {
        uint8_t* row = image.rgb.data() + 3ull * jpeg.output_scanline * jpeg.output_width;
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
    jpeg_destroy_decompress(&jpeg);
    return image;
}

static Image read_image(const char* path) {
    File file(std::fopen(path, "rb"), std::fclose);
    if (!file) throw std::runtime_error(std::string("cannot open ") + path);
    const int first = std::fgetc(file.get());
    std::rewind(file.get());
    return first == 0x89 ? read_png(file.get()) : read_jpeg(file.get());
}

int main(int count, char** arguments) try {
    if (count != 4) throw std::runtime_error("usage: inspect part.onnx image.png mask.pgm");
    Image image = read_image(arguments[2]);
    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR);
    Ort::Session session(environment, std::filesystem::path(arguments[1]).c_str(), Ort::SessionOptions());

    const std::array<int64_t, 4> shape{1, image.height, image.width, 3};
    Ort::Value pixels = Ort::Value::CreateTensor<uint8_t>(
        Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault), image.rgb.data(), image.rgb.size(), shape.data(), shape.size());
    const char* inputs[] = {"image"};
    // For a method without maps: the first three alone. A threshold of your own is one more input, such as reject_above.
    const char* outputs[] = {"score", "p_value", "decision", "mask"};
    const size_t wanted = session.GetOutputCount() > 3 ? 4 : 3;
    std::vector<Ort::Value> found = session.Run(Ort::RunOptions(), inputs, &pixels, 1, outputs, wanted);

    static const char* decisions[] = {"ok", "review", "reject"};
    std::cout.precision(9);
    std::cout << "{\"decision\": \"" << decisions[found[2].GetTensorData<int64_t>()[0]] << "\", \"score\": "
              << found[0].GetTensorData<float>()[0] << ", \"p_value\": " << found[1].GetTensorData<float>()[0] << "}\n";
    if (wanted == 4) {
        const bool* mask = found[3].GetTensorData<bool>();
        std::ofstream file(arguments[3], std::ios::binary);
        file << "P5\n" << image.width << ' ' << image.height << "\n255\n";
        for (int64_t i = 0; i < image.height * image.width; ++i) file.put(mask[i] ? '\xff' : '\0');
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << "inspect: " << error.what() << '\n';
    return 1;
}
