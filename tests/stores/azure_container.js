// Creates a container in Azurite: azure_container.js PORT ACCOUNT KEY CONTAINER
const http = require("http");
const crypto = require("crypto");

const [port, account, key, container] = process.argv.slice(2);
const date = new Date().toUTCString();
const version = "2021-08-06";
const text = [
  "PUT", "", "", "", "", "", "", "", "", "", "", "",
  `x-ms-date:${date}`,
  `x-ms-version:${version}`,
  `/${account}/${account}/${container}`,
  "restype:container",
].join("\n");
const signature = crypto.createHmac("sha256", Buffer.from(key, "base64")).update(text, "utf8").digest("base64");
const options = {
  host: "127.0.0.1",
  port,
  method: "PUT",
  path: `/${account}/${container}?restype=container`,
  headers: {
    "x-ms-date": date,
    "x-ms-version": version,
    "content-length": 0,
    authorization: `SharedKey ${account}:${signature}`,
  },
};
http
  .request(options, (answer) => {
    answer.on("data", (data) => process.stderr.write(data));
    answer.on("end", () => process.exit(answer.statusCode === 201 ? 0 : 1));
  })
  .end();
