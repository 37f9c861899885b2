// Judges one PNG or JPEG image: dotnet run -- part.onnx image.png mask.pgm

using System.Globalization;
using System.Text;
using Microsoft.ML.OnnxRuntime;
using StbImageSharp;

if (args.Length != 3)
{
    Console.Error.WriteLine("usage: inspect part.onnx image.png mask.pgm");
    return 1;
}
using var stream = File.OpenRead(args[1]);
var image = ImageResult.FromStream(stream, ColorComponents.RedGreenBlue);
using var settings = new SessionOptions { LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR };
using var session = new InferenceSession(args[0], settings);
using var options = new RunOptions();
using var pixels = OrtValue.CreateTensorValueFromMemory(image.Data, new long[] { 1, image.Height, image.Width, 3 });
// A threshold of your own is one more input, such as "reject_above".
var inputs = new Dictionary<string, OrtValue> { ["image"] = pixels };
var names = new List<string> { "score", "p_value", "decision" };
if (session.OutputMetadata.ContainsKey("mask")) names.Add("mask");
using var found = session.Run(options, inputs, names);

var decision = new[] { "ok", "review", "reject" }[found[2].GetTensorDataAsSpan<long>()[0]];
var score = found[0].GetTensorDataAsSpan<float>()[0].ToString("R", CultureInfo.InvariantCulture);
var pValue = found[1].GetTensorDataAsSpan<float>()[0].ToString("R", CultureInfo.InvariantCulture);
Console.WriteLine($"{{\"decision\": \"{decision}\", \"score\": {score}, \"p_value\": {pValue}}}");
if (names.Count == 4)
{
    using var file = File.Create(args[2]);
    file.Write(Encoding.ASCII.GetBytes($"P5\n{image.Width} {image.Height}\n255\n"));
    foreach (var isFound in found[3].GetTensorDataAsSpan<bool>()) file.WriteByte(isFound ? (byte)255 : (byte)0);
}
return 0;
